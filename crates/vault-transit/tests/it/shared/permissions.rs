//! What a token has to be allowed, and what it should not be.

use std::time::Duration;

use kms_core::{CheckOutcome, Ciphertext, Kms, KmsConfig, KmsErrorKind};
use serde_json::json;
use testkit::vault_server::VaultAdmin;

use super::{Vault, codes, key_path, open, policy, prove, record};

/// The generated policy is enough, and what it leaves is warned of.
pub(crate) async fn the_least_privilege_is_enough(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let settings = json!({ "period": "24h", "no_default_policy": true, "no_parent": true });
    let token = vault.token(&policy(&config), settings);
    let proof = prove(&config, &token).await.unwrap();
    assert_eq!(codes(&proof), [""; 0]);
    assert_eq!(proof.master_key.name, config.master_key);
    assert!(proof.credential.periodic && proof.credential.renewable);
    assert_eq!(proof.kms.wrap(&[record()]).await.unwrap().len(), 1);
    // It can do no more than that.
    let other = VaultAdmin::new(&vault.url, &token);
    for (method, path) in [
        ("DELETE", key_path(&config)),
        ("GET", format!("transit/export/encryption-key/{}", config.master_key)),
    ] {
        assert_eq!(other.ask(method, &path, &json!({})).0, 403);
    }
}

/// Each permission that is missing is named, with the line that grants it.
pub(crate) async fn each_missing_permission_is_named(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let policy = policy(&config);
    let grants: Vec<_> = policy.lines().filter(|line| line.starts_with("path")).collect();
    assert_eq!(grants.len(), 6);
    for missing in grants {
        let [_, path, _, capability, _] = missing.split('"').collect::<Vec<_>>()[..] else {
            panic!("{missing}")
        };
        let rest = policy.replace(missing, "");
        let token = vault.token(&rest, json!({ "no_default_policy": true, "period": "24h" }));
        let proof = prove(&config, &token).await;
        let (what, cure) = if path == "auth/token/renew-self" {
            let proof = proof.unwrap();
            assert!(!proof.credential.renewable);
            let finding =
                proof.findings.into_iter().find(|f| f.code == "token-may-not-renew").unwrap();
            (finding.what, finding.cure)
        } else {
            let error = proof.unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::Denied, "{error}");
            (error.to_string(), error.how_to_mend().unwrap().to_owned())
        };
        assert!(what.contains(&format!("may not {capability} {path}")), "{what}");
        assert!(cure.contains(missing), "{cure}");
    }
}

/// A token that may not renew itself ends, however it was made: the first look of a new process says so, and says it no more once the
/// permission is there.
pub(crate) async fn a_token_that_may_not_renew_itself_ends(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let all = policy(&config);
    let renew = all.lines().find(|line| line.contains("renew-self")).unwrap();
    for life in [json!({ "period": "24h" }), json!({ "ttl": "24h" })] {
        let mut settings = json!({ "no_default_policy": true, "no_parent": true });
        settings.as_object_mut().unwrap().extend(life.as_object().unwrap().clone());
        let token = vault.admin.token("silent", &all.replace(renew, ""), &settings);
        let kms = open(&config, &token);
        let key = kms.master_key().await.unwrap();
        let look = async || {
            let status = kms.credential().await.unwrap();
            (status.renewable, kms.findings(&key, &status))
        };
        for _ in 0..2 {
            let (renewable, found) = look().await;
            assert!(!renewable && found[0].code == "token-may-not-renew", "{found:?}");
            assert!(found[0].ends_in > Some(Duration::from_secs(23 * 3600)), "{found:?}");
            assert!(found[0].cure.contains(renew), "{found:?}");
        }
        assert!(!open(&config, &token).credential().await.unwrap().renewable);
        vault.admin.write("sys/policies/acl/silent", &json!({ "policy": all }));
        let (renewable, found) = look().await;
        let told = found.iter().any(|found| found.code == "token-may-not-renew");
        assert!(renewable && !told, "{found:?}");
    }
}

/// A permission that is lost later is named as well.
pub(crate) async fn a_permission_lost_later_is_named(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let all = policy(&config);
    let lost =
        format!("path \"transit/decrypt/{}\" {{ capabilities = [\"update\"] }}", config.master_key);
    let kms = open(&config, &vault.token(&all.replace(&lost, ""), json!({})));
    let wrapped = kms.wrap(&[record()]).await.unwrap().only().unwrap();
    let error = kms.unwrap(&[wrapped]).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Denied);
    assert!(
        error
            .to_string()
            .contains(&format!("may not update transit/decrypt/{}", config.master_key))
    );
}

/// The items of a check that did not pass, by code and outcome.
async fn failings(kms: &dyn Kms, sample: Option<&Ciphertext>) -> Vec<(String, CheckOutcome)> {
    let items = kms.check(sample).await;
    for item in &items {
        assert!(!item.what.is_empty(), "{item:?}");
        let passed = item.outcome == CheckOutcome::Passed;
        assert!(passed || !item.found.is_empty(), "{item:?}");
        let mended = [CheckOutcome::Failed, CheckOutcome::Warning].contains(&item.outcome);
        assert_eq!(item.cure.is_some(), mended, "{item:?}");
    }
    let failed = items.into_iter().filter(|item| item.outcome != CheckOutcome::Passed);
    failed.map(|item| (item.code, item.outcome)).collect()
}

/// What is missing, what is too much, and nothing else.
pub(crate) async fn a_check_tells_all(vault: &Vault, root: &str) {
    use CheckOutcome::{Failed, Unknown, Warning};
    let config = vault.make_key(&json!({}));
    let least = policy(&config);
    let periodic = json!({ "period": "1h", "no_parent": true });
    let good = open(&config, &vault.token(&least, periodic.clone()));
    assert_eq!(failings(good.as_ref(), None).await, []);
    let codes: Vec<_> = good.check(None).await.into_iter().map(|item| item.code).collect();
    assert_eq!(
        codes,
        [
            "answers",
            "certificate",
            "may-lookup-self",
            "may-read-key",
            "may-encrypt",
            "may-decrypt",
            "may-rewrap",
            "may-renew-self",
            "excess",
            "key-settings"
        ]
    );
    let wrapped = good.wrap(&[record()]).await.unwrap().only().unwrap();

    for (verb, code) in
        [("encrypt", "may-encrypt"), ("decrypt", "may-decrypt"), ("rewrap", "may-rewrap")]
    {
        let lacking: String =
            least.lines().filter(|line| !line.contains(verb)).map(|l| format!("{l}\n")).collect();
        let kms = open(&config, &vault.token(&lacking, periodic.clone()));
        let found = failings(kms.as_ref(), Some(&wrapped)).await;
        assert_eq!(found, [(code.to_owned(), Failed)]);
        let item = kms.check(Some(&wrapped)).await.into_iter().find(|item| item.code == code);
        let item = item.unwrap();
        assert_eq!(item.failure, Some(KmsErrorKind::Denied));
        assert!(item.cure.unwrap().contains(&format!("transit/{verb}/{}", config.master_key)));
        if verb == "encrypt" {
            let found = failings(kms.as_ref(), None).await;
            let untold = |code: &str| (code.to_owned(), Unknown);
            let all = [(code.to_owned(), Failed), untold("may-decrypt"), untold("may-rewrap")];
            assert_eq!(found, all);
        }
    }

    let path = |verb: &str, cap: &str| {
        format!("path \"transit/{verb}\" {{ capabilities = [\"{cap}\"] }}\n")
    };
    let key = &config.master_key;
    let too_much = [
        least.clone(),
        path(&format!("keys/{key}/rotate"), "update"),
        path(&format!("export/encryption-key/{key}/*"), "read"),
        path(&format!("backup/{key}"), "read"),
        "path \"sys/mounts/transit\" { capabilities = [\"delete\"] }\n".to_owned(),
    ];
    let kms = open(&config, &vault.token(&too_much.concat(), periodic.clone()));
    let items = kms.check(None).await;
    let excess: Vec<_> = items.iter().filter(|item| item.code == "excess").collect();
    assert_eq!(excess.len(), 4, "{items:#?}");
    for (item, word) in excess.iter().zip(["sys/mounts/transit", "rotate", "export", "backup"]) {
        assert!(item.outcome == Warning && item.found.contains(word), "{item:?}");
    }
    // The page's own policy: `+` covers backup, restore and export, and lets Vault make the key.
    let page =
        format!("path \"transit/+/{key}\" {{ capabilities = [\"read\", \"create\", \"update\"] }}");
    let found = open(&config, &vault.token(&page, periodic)).check(None).await;
    let words: String =
        found.iter().filter(|item| item.code == "excess").map(|i| i.found.as_str()).collect();
    for word in ["backup/", "restore/", "encrypt/", "keys/"] {
        assert!(words.contains(word), "{word}: {found:#?}");
    }

    vault
        .admin
        .write(&format!("{}/config", key_path(&config)), &json!({ "deletion_allowed": true }));
    let found = failings(open(&config, root).as_ref(), None).await;
    let warned = |code: &str| (code.to_owned(), Warning);
    assert_eq!(found, [warned("token-is-root"), warned("key-deletable")]);

    // With all that it needs, a token is not blamed for a key that is gone.
    let gone = vault.config("gone");
    let token = vault.token(&policy(&gone), json!({ "period": "1h", "no_parent": true }));
    let found = failings(open(&gone, &token).as_ref(), Some(&wrapped)).await;
    let untold = |code: &str| (code.to_owned(), Unknown);
    let uses = ["may-encrypt", "may-decrypt", "may-rewrap"].map(untold);
    assert_eq!(found[0], ("may-read-key".to_owned(), Failed));
    assert_eq!(found[1..], uses);

    let dead = open(&config, "hvs.dead").check(None).await;
    assert!(dead.iter().any(|item| item.failure == Some(KmsErrorKind::Denied)), "{dead:#?}");
    let nowhere = config_at("http://127.0.0.1:9", &config);
    let away = open(&nowhere, root).check(None).await;
    assert_eq!(away.len(), 1, "{away:#?}");
    assert_eq!((away[0].code.as_str(), away[0].outcome), ("answers", Failed));
}

fn config_at(url: &str, like: &KmsConfig) -> KmsConfig {
    KmsConfig { address: url.to_owned(), ..like.clone() }
}
