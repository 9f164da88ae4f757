//! Master keys that are there, missing, unfit or out of reach.

use std::time::Duration;

use kms_core::KmsErrorKind;
use serde_json::json;

use super::{Vault, codes, key_path, open, prove, record};

/// The key is read before each wrap, so the contract does not show what happens if it goes in between:
/// what Vault does with Coffer's encrypt request for a missing key, under a policy that lets it make one.
pub(crate) async fn a_key_that_goes_between_read_and_encrypt_is_not_made(vault: &Vault) {
    let missing = vault.config("goes-in-between");
    for settings in [json!({ "type": "ecdsa-p256" }), json!({})] {
        let mut body = settings.clone();
        body["batch_input"] = json!([{ "plaintext": "AAAA" }]);
        let (status, answer) = vault.admin.ask("POST", "transit/encrypt/goes-in-between", &body);
        let (read, _) = vault.admin.ask("GET", &key_path(&missing), &json!({}));
        // Without `type` the key is made: so it is that which keeps Vault from it.
        let made = settings == json!({});
        assert_eq!((status, read), if made { (200, 200) } else { (400, 404) }, "{answer}");
    }
}

/// What is mounted is of another kind: `engines` are mounts that are there, or types (and settings) of which one is made.
pub(crate) async fn another_engine_is_told(
    vault: &Vault,
    root_token: &str,
    engines: &[(&str, Option<serde_json::Value>)],
) {
    for (mount, settings) in engines {
        if let Some(settings) = settings {
            vault.admin.write(&format!("sys/mounts/{mount}"), settings);
            // A new versioned store is not ready at once, and says so.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let mut config = vault.config("k");
        config.settings.insert("transit_path".into(), (*mount).into());
        let error = prove(&config, root_token).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::KeyMissing, "{mount}: {error:?}");
        let cure = error.how_to_mend().unwrap();
        assert!(cure.contains("--transit-path"), "{mount}: {error}; {cure}");
        // One that says of what is not there what transit says of a missing key can't be told, until there is something.
        let (written, _) = vault.admin.ask("POST", &key_path_in(mount), &json!({ "a": "b" }));
        if error.to_string().contains("no master key") {
            assert_eq!(written, 204, "{mount}: {error}");
        }
        let error = prove(&config, root_token).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::KeyMissing, "{mount}: {error:?}");
        let what = error.to_string();
        let expected = format!("what is mounted at {mount}/ in Vault is no transit engine");
        assert_eq!(what, expected, "{:?}", error.how_to_mend());
        assert!(error.how_to_mend().unwrap().contains("--transit-path"));
    }
}

fn key_path_in(mount: &str) -> String {
    format!("{mount}/keys/k")
}

pub(crate) async fn flags_of_the_key_are_warned_of(vault: &Vault, root_token: &str) {
    let config = vault.make_key(&json!({ "exportable": true, "allow_plaintext_backup": true }));
    vault
        .admin
        .write(&format!("{}/config", key_path(&config)), &json!({ "deletion_allowed": true }));
    let proof = prove(&config, root_token).await.unwrap();
    assert_eq!(
        codes(&proof),
        ["token-is-root", "key-deletable", "key-exportable", "key-backup-in-clear"]
    );
    let key = &proof.master_key;
    assert!(key.deletion_allowed && key.exportable && key.backup_in_clear);
    // A later look says the same of what it sees.
    let later = proof.kms.findings(&proof.master_key, &proof.credential);
    assert_eq!(later, proof.findings);
    // And one that has asked for nothing yet says nothing of the token, which it has not seen.
    assert_eq!(open(&config, root_token).key_findings(key), proof.findings[1..]);

    // What may leave Vault in one way alone is told as that.
    for (flag, code) in
        [("exportable", "key-exportable"), ("allow_plaintext_backup", "key-backup-in-clear")]
    {
        let config = vault.make_key(&json!({ flag: true }));
        let proof = prove(&config, root_token).await.unwrap();
        assert_eq!(codes(&proof), ["token-is-root", code]);
        assert_eq!(proof.kms.findings(&proof.master_key, &proof.credential), proof.findings);
    }
}

/// `settings` make a key that can't serve.
pub(crate) async fn an_unfit_key_is_refused(
    vault: &Vault,
    root_token: &str,
    settings: serde_json::Value,
) {
    let config = vault.make_key(&settings);
    let error = prove(&config, root_token).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::KeyUnfit, "{error}");
    assert!(error.to_string().contains(&config.master_key));
    assert!(error.how_to_mend().unwrap().contains("aes256-gcm96"));
    let error = open(&config, root_token).wrap(&[record()]).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::KeyUnfit);
}

/// A missing key and a missing mount are told apart, and proving makes neither.
pub(crate) async fn what_is_missing_is_named(vault: &Vault, root_token: &str) {
    let config = vault.config("no-such-key");
    for _ in 0..2 {
        let error = prove(&config, root_token).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::KeyMissing);
        assert!(error.to_string().contains("no master key no-such-key in transit/"), "{error}");
        assert!(error.how_to_mend().unwrap().contains("vault write -f transit/keys/no-such-key"));
    }
    let mut config = vault.config("k");
    config.settings.insert("transit_path".into(), "team/transit".into());
    let error = prove(&config, root_token).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::KeyMissing);
    assert!(error.to_string().contains("nothing is mounted at team/transit/"), "{error}");
    assert!(
        error.how_to_mend().unwrap().contains("vault secrets enable -path=team/transit transit")
    );
}

/// Transit somewhere else than at `transit/`.
pub(crate) async fn transit_may_be_mounted_anywhere(vault: &Vault, root_token: &str) {
    vault.admin.write("sys/mounts/team/transit", &json!({ "type": "transit" }));
    vault.admin.write("team/transit/keys/k", &json!({}));
    let mut config = vault.config("k");
    config.settings.insert("transit_path".into(), "team/transit".into());
    prove(&config, root_token).await.unwrap();
}

pub(crate) async fn a_sealed_vault_has_its_own_words(vault: &Vault, root_token: &str) {
    let config = vault.make_key(&json!({}));
    let kms = open(&config, root_token);
    let wrapped = kms.wrap(&[record()]).await.unwrap().only().unwrap();
    let (status, answer) = vault.admin.ask("PUT", "sys/seal", &json!({}));
    assert_eq!(status, 204, "{answer}");
    for error in [
        kms.unwrap(&[wrapped]).await.unwrap_err(),
        kms.wrap(&[record()]).await.unwrap_err(),
        prove(&config, root_token).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), KmsErrorKind::Sealed, "{error:?}");
        assert!(error.to_string().contains("is sealed"));
        assert!(error.how_to_mend().unwrap().contains("vault operator unseal"));
    }
}
