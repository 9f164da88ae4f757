//! Tokens, logins and token files: which are taken, and how long they live.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kms_core::{
    Auth, CheckOutcome, Credential, ExposeSecret as _, Finding, Kms, KmsConfig, KmsErrorKind,
    KmsProvider as _, Login,
};
use serde_json::json;

use super::{
    Vault, assert_shows_no, codes, credential, key_path, open, policy, prove, provider, record,
};

/// A token that Vault does not know is told from one that lacks a permission.
pub(crate) async fn bad_tokens_are_named(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let short = vault.token(&policy(&config), json!({ "ttl": "1s" }));
    let revoked = vault.token(&policy(&config), json!({ "ttl": "1h" }));
    vault.admin.write("auth/token/revoke", &json!({ "token": revoked }));
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    for token in
        [short.as_str(), &revoked, "s.nRucA9Gtb3yNVmLUK22yzVKA", "hvs.wrong", "wrong-token"]
    {
        let error = prove(&config, token).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Denied, "{error:?}");
        let what = error.to_string();
        assert!(what.contains("wrong, expired or revoked"), "{what}");
        assert!(what.contains("read auth/token/lookup-self"), "{what}");
        assert!(error.how_to_mend().unwrap().contains("new token"));

        let error = open(&config, token).wrap(&[record()]).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Denied);
        assert!(error.to_string().contains(&format!("read {}", key_path(&config))), "{error}");
    }
    for token in ["", "two words", "line\nend", "s.token\n"] {
        let error = provider().open(&config, &credential(token)).unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Invalid);
    }
    let none = provider().open(&config, &Credential::default()).unwrap_err();
    assert_eq!(none.kind(), KmsErrorKind::Denied);
    assert!(none.how_to_mend().unwrap().contains("set-vault"), "{none:?}");
}

/// A policy that each role has beside its own, once a test has written it.
const MAY_ASK: &str = "may-ask";

/// An AppRole whose tokens live for so many seconds, and a login under it.
fn app_role(vault: &Vault, mount: &str, config: &KmsConfig, role: &serde_json::Value) -> Login {
    let name = format!("role-{}", vault.made.fetch_add(1, Ordering::Relaxed));
    // One that is there already is no failure of the test.
    vault.admin.ask("POST", &format!("sys/auth/{mount}"), &json!({ "type": "approle" }));
    vault.admin.write(&format!("sys/policies/acl/{name}"), &json!({ "policy": policy(config) }));
    let policies = [&name, MAY_ASK];
    let mut settings = json!({ "token_policies": policies, "policies": policies });
    settings.as_object_mut().unwrap().extend(role.as_object().unwrap().clone());
    let path = format!("auth/{mount}/role/{name}");
    vault.admin.write(&path, &settings);
    let id = vault.admin.read(&format!("{path}/role-id"))["data"]["role_id"].clone();
    let secret = vault.admin.write(&format!("{path}/secret-id"), &json!({}));
    let secret = secret["data"]["secret_id"].as_str().unwrap();
    let path = if mount == "approle" { String::new() } else { mount.to_owned() };
    Login { path, id: id.as_str().unwrap().to_owned(), secret: secret.into() }
}

/// A login goes on for ever, with tokens that end, by their maximum life too.
pub(crate) async fn a_login_outlives_its_tokens(vault: &Vault) {
    for (mount, settings) in [
        (
            "approle",
            json!({ "token_ttl": "2s", "token_max_ttl": "3s", "ttl": "2s", "max_ttl": "3s" }),
        ),
        ("team/approle", json!({ "token_num_uses": 6 })),
    ] {
        let config = vault.make_key(&json!({}));
        let credential = Credential::from(Auth::Login(app_role(vault, mount, &config, &settings)));
        let proof = provider().prove(&config, &credential).await.unwrap();
        assert_eq!(codes(&proof), [""; 0]);
        assert!(proof.credential.renewable && proof.credential.periodic, "{:?}", proof.credential);
        let kms = proof.kms;
        let wrapped = kms.wrap(&[record()]).await.unwrap().only().unwrap();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            let opened = kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap();
            assert!(opened[0].is_ok(), "{opened:?}");
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let renewed = kms.renew().await.unwrap();
        assert!(renewed.renewable && renewed.periodic, "{renewed:?}");
        assert!(renewed.time_left > Some(Duration::from_secs(1)), "{renewed:?}");
        if mount != "approle" {
            continue;
        }
        // Many that find the token gone at once.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        let many = (0..20).map(|_| kms.unwrap(std::slice::from_ref(&wrapped)));
        for opened in futures::future::join_all(many).await {
            opened.unwrap().only().unwrap();
        }
    }
}

/// Vault tells what is left of a secret id to a token that may ask, whoever used it up or destroyed it; of one that may not nothing is said.
pub(crate) async fn the_end_of_a_secret_id_is_told_before_a_login_is_refused(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let limited =
        json!({ "secret_id_num_uses": 4, "secret_id_ttl": "1h", "token_ttl": "20m", "ttl": "20m" });
    let found = async |kms: &dyn Kms| {
        let (key, status) = (kms.master_key().await.unwrap(), kms.credential().await.unwrap());
        let found = kms.findings(&key, &status).into_iter();
        found.filter(|f| f.code.starts_with("secret-id")).collect::<Vec<_>>()
    };
    let shown = |found: &[Finding]| found.iter().map(Finding::told).collect::<Vec<_>>();
    let uses = "was good for";
    let expires = ["59", "60"].map(|minutes| {
        format!("after the secret id's end no login is granted; it ends in {minutes} minutes")
    });

    // One that may not ask.
    let login = app_role(vault, "approle", &config, &limited);
    let proof = provider().prove(&config, &Auth::Login(login).into()).await.unwrap();
    assert_eq!(codes(&proof), [""; 0]);
    assert_eq!(found(proof.kms.as_ref()).await, []);

    for mount in ["approle", "team/approle"] {
        let may_ask = format!(
            "path \"auth/{mount}/role/+/secret-id/lookup\" {{ capabilities = [\"update\"] }}"
        );
        vault.admin.write(&format!("sys/policies/acl/{MAY_ASK}"), &json!({ "policy": may_ask }));
        let login = app_role(vault, mount, &config, &limited);
        let secret_id = login.secret.expose_secret().to_owned();
        let role_id = login.id.clone();
        let used_elsewhere = || {
            let login = json!({ "role_id": role_id, "secret_id": secret_id });
            vault.admin.write(&format!("auth/{mount}/login"), &login);
        };
        let proof = provider().prove(&config, &Auth::Login(login).into()).await;
        assert_shows_no(&secret_id, &proof);
        let proof = proof.unwrap();
        assert_eq!(codes(&proof), ["secret-id-uses-limited", "secret-id-expires"]);
        let kms = proof.kms;
        let told = shown(&found(kms.as_ref()).await);
        assert!(
            told[0].contains(&format!("{uses} 3 more logins")) && expires.contains(&told[1]),
            "{told:?}"
        );
        assert!(proof.findings[0].cure.contains(&format!("auth/{mount}/role/")));
        assert_eq!(kms.starts_left().await.unwrap(), Some(3));
        used_elsewhere();
        used_elsewhere();
        let told = shown(&found(kms.as_ref()).await);
        assert!(told[0].contains(&format!("{uses} 1 more login ")), "{told:?}");
        // A check does not take the last one.
        let checked: Vec<_> = kms.check(None).await;
        let login = checked.iter().find(|item| item.code == "may-renew-self").unwrap();
        assert_eq!(login.outcome, CheckOutcome::Unknown, "{login:?}");
        assert_eq!(kms.starts_left().await.unwrap(), Some(1));
        used_elsewhere();
        let gone = found(kms.as_ref()).await;
        assert_eq!(gone.len(), 1, "{gone:?}");
        assert_eq!(gone[0].code, "secret-id-gone");
        assert!(gone[0].ends_in > Some(Duration::from_secs(1100)), "{gone:?}");
        let status = kms.credential().await.unwrap();
        assert!(status.renewable && !status.periodic, "{status:?}");
        assert_eq!(kms.starts_left().await.unwrap(), Some(0));

        let login = app_role(vault, mount, &config, &json!({}));
        let secret_id = json!({ "secret_id": login.secret.expose_secret() });
        let kms = provider().open(&config, &Auth::Login(login).into()).unwrap();
        assert_eq!(found(kms.as_ref()).await, []);
        let made_last = vault.made.load(Ordering::Relaxed) - 1;
        let destroy = format!("auth/{mount}/role/role-{made_last}/secret-id/destroy");
        vault.admin.write(&destroy, &secret_id);
        assert_eq!(found(kms.as_ref()).await[0].code, "secret-id-gone");
        let endless = Auth::Login(app_role(vault, mount, &config, &json!({}))).into();
        assert_eq!(codes(&provider().prove(&config, &endless).await.unwrap()), [""; 0]);
    }
}

pub(crate) async fn a_login_that_is_refused_says_so(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let good = app_role(vault, "approle", &config, &json!({}));
    let wrong_id = Login { id: "no-role".to_owned(), ..good.clone() };
    let secret = "canary-of-a-secret-id";
    let wrong_secret = Login { secret: secret.into(), ..good.clone() };
    let elsewhere = Login { path: "nowhere".to_owned(), ..good.clone() };
    for (login, words) in [
        (wrong_id, "role id or the secret id is wrong"),
        (wrong_secret, "role id or the secret id is wrong"),
        (elsewhere, "auth/nowhere/"),
    ] {
        let proof = provider().prove(&config, &Auth::Login(login).into()).await;
        assert_shows_no(secret, &proof);
        let error = proof.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.how_to_mend().is_some());
    }
    let invalid = Login { path: "../sys".to_owned(), ..good };
    let error = provider().open(&config, &Auth::Login(invalid).into()).unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Invalid);
    // A permission that the role lacks is told as such, and takes no further login.
    let other = vault.make_key(&json!({}));
    let login = app_role(vault, "approle", &config, &json!({}));
    let error = provider().prove(&other, &Auth::Login(login).into()).await.unwrap_err();
    assert!(error.to_string().contains("may not read"), "{error}");
}

/// A token file, as an agent writes it.
pub(crate) async fn a_token_file_is_read_when_it_changes(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("token");
    let write = |token: &str| {
        std::fs::write(home.path().join("new"), format!("{token}\n")).unwrap();
        std::fs::rename(home.path().join("new"), &file).unwrap();
    };
    let credential = Credential::from(Auth::TokenFile(file.clone()));
    let kms = provider().open(&config, &credential).unwrap();
    let error = kms.wrap(&[record()]).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::NoCredential, "it may be written yet: {error:?}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");

    let first = vault.token(&policy(&config), json!({ "ttl": "1h" }));
    write(&first);
    let proof = provider().prove(&config, &credential).await.unwrap();
    assert_eq!(codes(&proof), [""; 0], "who writes the file sees to it");
    let wrapped = kms.wrap(&[record()]).await.unwrap().only().unwrap();
    vault.admin.write("auth/token/revoke", &json!({ "token": first }));
    let refused = kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap_err();
    assert_eq!(refused.kind(), KmsErrorKind::Denied);
    write(&vault.token(&policy(&config), json!({ "ttl": "1h" })));
    kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap().only().unwrap();
    // One that is gone or no token changes nothing while the last one lives.
    for bad in ["two words", ""] {
        write(bad);
        kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap().only().unwrap();
    }
    std::fs::remove_file(&file).unwrap();
    kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap().only().unwrap();
}

/// Periodic or not, by whatever way the token was made; no version tells it for roles.
pub(crate) async fn the_life_of_a_token_is_told(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let policy = policy(&config);

    vault.admin.write("sys/policies/acl/by-role", &json!({ "policy": policy }));
    vault.admin.write(
        "auth/token/roles/periodic",
        &json!({ "allowed_policies": "by-role", "period": "768h", "orphan": true }),
    );
    let answer = vault.admin.write("auth/token/create/periodic", &json!({}));
    let by_role = answer["auth"]["client_token"].as_str().unwrap();
    let proof = prove(&config, by_role).await.unwrap();
    assert_eq!(codes(&proof), [""; 0]);
    for status in [
        proof.credential,
        // A new process knows nothing yet.
        open(&config, by_role).credential().await.unwrap(),
        open(&config, by_role).renew().await.unwrap(),
    ] {
        assert!(status.periodic && status.renewable, "{status:?}");
        let left = status.time_left.unwrap();
        assert!(left <= Duration::from_secs(768 * 3600) && left > Duration::from_secs(767 * 3600));
    }

    let hour = vault.token(&policy, json!({ "ttl": "1h" }));
    let proof = prove(&config, &hour).await.unwrap();
    assert_eq!(codes(&proof), ["token-not-periodic", "token-expires-soon", "token-not-orphan"]);
    assert!(!proof.credential.periodic && proof.credential.renewable);
    assert!(!open(&config, &hour).credential().await.unwrap().periodic);

    // Its whole life is the most that Vault gives, so that every renewal is cut short.
    let longest = vault.token(&policy, json!({ "no_parent": true }));
    assert_eq!(codes(&prove(&config, &longest).await.unwrap()), ["token-not-periodic"]);

    let fixed =
        vault.token(&policy, json!({ "ttl": "48h", "renewable": false, "no_parent": true }));
    let proof = prove(&config, &fixed).await.unwrap();
    assert_eq!(codes(&proof), ["token-not-renewable"]);
    assert!(!proof.kms.renew().await.unwrap().renewable);

    let ends = vault
        .token(&policy, json!({ "period": "24h", "explicit_max_ttl": "100h", "no_parent": true }));
    assert_eq!(codes(&prove(&config, &ends).await.unwrap()), ["token-not-periodic"]);

    for (uses, words) in [(1, "they are used up"), (2, "wrong, expired or revoked")] {
        let counted = vault.token(&policy, json!({ "ttl": "1h", "num_uses": uses }));
        let error = prove(&config, &counted).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let counted =
        vault.token(&policy, json!({ "period": "24h", "num_uses": 50, "no_parent": true }));
    assert_eq!(codes(&prove(&config, &counted).await.unwrap()), ["token-uses-limited"]);
}

pub(crate) async fn the_root_token_is_warned_of(vault: &Vault, root_token: &str) {
    let proof = prove(&vault.make_key(&json!({})), root_token).await.unwrap();
    assert_eq!(codes(&proof), ["token-is-root"]);
    assert_eq!(proof.credential.time_left, None);
}
