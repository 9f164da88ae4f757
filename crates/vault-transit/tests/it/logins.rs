//! How often a secret id is sent: it may be good for a few uses only, and Vault locks out who fails often.

use std::time::{Duration, Instant};

use dev_vault::{DevVault, Event, Fault};
use kms_core::{
    Auth, CheckOutcome, Credential, Kms, KmsError, KmsErrorKind, KmsProvider as _, Login,
};
use serde_json::{Value, json};

use vault_transit::{Limits, VaultProvider};

use crate::shared::{LIMITS, config, policy, provider, record};

const ROLE: &str = "auth/approle/role/node";

/// How long the tokens of its logins live.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// A Vault with these transit keys, and a role that may use them.
async fn vault(keys: &[&str]) -> DevVault {
    let started = keys.iter().fold(DevVault::builder(), |vault, key| vault.transit_key(*key));
    let vault = started.start().await.unwrap();
    let policies: String = keys.iter().map(|key| policy(&config(&vault.url(), key))).collect();
    write(&vault, "sys/policies/acl/node", json!({ "policy": policies }));
    write(&vault, "sys/auth/approle", json!({ "type": "approle" }));
    write(&vault, ROLE, json!({ "token_policies": "node", "token_period": "1h" }));
    vault
}

fn write(vault: &DevVault, path: &str, body: Value) -> Value {
    vault.admin("POST", path, body).unwrap()
}

/// With a secret id of its own.
fn login(vault: &DevVault) -> Credential {
    let id = vault.admin("GET", &format!("{ROLE}/role-id"), Value::Null).unwrap();
    let secret = write(vault, &format!("{ROLE}/secret-id"), json!({}));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Auth::Login(Login {
        path: String::new(),
        id: text(&id["data"]["role_id"]),
        secret: text(&secret["data"]["secret_id"]).into(),
    })
    .into()
}

fn wrong(vault: &DevVault) -> Credential {
    let mut credential = login(vault);
    if let Auth::Login(login) = &mut credential.auth {
        login.secret = "canary-of-a-secret-id".into();
    }
    credential
}

fn logins(vault: &DevVault) -> u64 {
    vault.requests().count("auth/approle/login").requests
}

/// Lets so much time pass by the clock of this process.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn refused(kms: &dyn Kms) -> KmsError {
    let error = kms.master_key().await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("secret id is wrong"), "{error}");
    assert!(error.how_to_mend().unwrap().contains("set-vault"), "{error:?}");
    error
}

#[tokio::test]
async fn a_login_that_was_refused_is_not_sent_again_for_a_while() {
    let vault = vault(&["k"]).await;
    let kms = provider().open(&config(&vault.url(), "k"), &wrong(&vault)).unwrap();
    refused(kms.as_ref()).await;
    let meanwhile = refused(kms.as_ref()).await;
    assert!(meanwhile.to_string().contains("UTC only"), "{meanwhile}");
    assert!(meanwhile.how_to_mend().unwrap().contains("fs kms check"), "{meanwhile:?}");
    futures::future::join_all((0..20).map(|_| refused(kms.as_ref()))).await;
    assert_eq!(logins(&vault), 1);
    let sent_after = async |minutes| {
        for _ in 0..minutes {
            pass(Duration::from_secs(60)).await;
            refused(kms.as_ref()).await;
        }
        logins(&vault)
    };
    assert_eq!(sent_after(15).await, 2);
    // Vault's count has begun anew before each of the later ones.
    assert_eq!(sent_after(45).await, 5);
}

#[tokio::test]
async fn a_check_sends_a_refused_login_once_and_finds_one_that_is_granted_again() {
    let vault = vault(&["k"]).await;
    let kms = provider().open(&config(&vault.url(), "k"), &wrong(&vault)).unwrap();
    refused(kms.as_ref()).await;
    for sent in 2..4 {
        assert!(
            kms.check(None).await.iter().any(|item| item.failure == Some(KmsErrorKind::Denied))
        );
        assert_eq!(logins(&vault), sent);
        assert!(kms.check_key(None).await.iter().all(|item| item.outcome != CheckOutcome::Passed));
        assert_eq!(logins(&vault), sent);
    }
    write(&vault, ROLE, json!({ "bind_secret_id": false }));
    refused(kms.as_ref()).await;
    assert!(kms.check(None).await.iter().all(|item| item.failure.is_none()));
    kms.wrap(&[record()]).await.unwrap().only().unwrap();
}

/// Vault would lock the role out at the fifth.
#[tokio::test]
async fn of_logins_that_are_refused_one_after_the_other_a_check_sends_the_fourth_and_no_more() {
    let vault = vault(&["k"]).await;
    let kms = provider().open(&config(&vault.url(), "k"), &wrong(&vault)).unwrap();
    for _ in 0..6 {
        let items = kms.check(None).await;
        assert!(items.iter().any(|item| item.failure == Some(KmsErrorKind::Denied)), "{items:?}");
    }
    assert_eq!(logins(&vault), 4);
    pass(Duration::from_secs(15 * 60)).await;
    kms.check(None).await;
    assert_eq!(logins(&vault), 5);
}

/// Policies that a role was given come with the next login, and those that it lost go with that.
#[tokio::test]
async fn what_another_login_gets_is_seen_before_it_takes_the_place_of_what_there_is() {
    let vault = vault(&["k", "a"]).await;
    let (provider, credential) = (provider(), login(&vault));
    let here = config(&vault.url(), "k");
    let kms = provider.open(&here, &credential).unwrap();
    let works = async || kms.wrap(&[record()]).await.and_then(kms_core::Items::only).is_ok();
    let role = |policies: &str| write(&vault, ROLE, json!({ "token_policies": policies }));
    assert!(works().await);
    // It is told of a check and of a proof, and the node goes on with what it has.
    role("none");
    pass(Duration::from_secs(61)).await;
    let failed = async || kms.check(None).await.into_iter().filter(|item| item.failure.is_some());
    let codes: Vec<_> = failed().await.map(|item| item.code).collect();
    assert!(codes.iter().any(|code| code == "may-encrypt"), "{codes:?}");
    assert_eq!(provider.prove(&here, &credential).await.unwrap_err().kind(), KmsErrorKind::Denied);
    assert!(works().await);
    let alive = logins(&vault) - vault.requests().count("auth/token/revoke-self").requests;
    assert_eq!(alive, 1, "what was got for them is ended");

    // A node that has got too little: it tries again by itself, later and later, and at once when it is checked.
    let kms = crate::shared::provider().open(&here, &credential).unwrap();
    let works = async || kms.wrap(&[record()]).await.and_then(kms_core::Items::only).is_ok();
    let refused = kms.wrap(&[record()]).await.unwrap_err();
    assert!(
        refused.how_to_mend().unwrap().contains("fs kms check takes it at once"),
        "{refused:?}"
    );
    role("node");
    assert!(!works().await, "not within minutes");
    pass(Duration::from_secs(5 * 60 + 1)).await;
    assert!(works().await);
    role("none");
    vault.advance(HOUR);
    assert!(!works().await);
    let before = logins(&vault);
    for _ in 0..60 {
        pass(Duration::from_secs(60)).await;
        assert!(!works().await);
    }
    assert!((3..=4).contains(&(logins(&vault) - before)), "after 5, 10 and 20 minutes");
    role("node");
    assert!(kms.check(None).await.iter().all(|item| item.failure.is_none()));
    assert!(works().await);
}

/// Another credential, and the same once more, are proved when they are given.
#[tokio::test]
async fn who_gives_a_credential_learns_at_once_whether_it_is_good() {
    let vault = vault(&["k"]).await;
    let (provider, config, wrong) = (provider(), config(&vault.url(), "k"), wrong(&vault));
    let kms = provider.open(&config, &wrong).unwrap();
    refused(kms.as_ref()).await;
    provider.prove(&config, &login(&vault)).await.unwrap();
    assert_eq!(logins(&vault), 2);
    let again = provider.prove(&config, &wrong).await.unwrap_err();
    assert!(!again.to_string().contains("UTC only"), "{again}");
    assert_eq!(logins(&vault), 3);
    refused(kms.as_ref()).await;
    assert_eq!(logins(&vault), 3);
}

/// A Vault that is away, or that nobody can log in to, has refused nobody.
#[tokio::test]
async fn a_login_that_failed_otherwise_is_sent_again() {
    let vault = vault(&["k"]).await;
    let kms = provider().open(&config(&vault.url(), "k"), &login(&vault)).unwrap();
    vault.happen(&Event::Seal).unwrap();
    assert_eq!(kms.master_key().await.unwrap_err().kind(), KmsErrorKind::Sealed);
    vault.happen(&Event::Unseal).unwrap();
    kms.master_key().await.unwrap();
}

#[tokio::test]
async fn all_that_log_in_to_the_same_vault_as_the_same_share_a_login() {
    const KEYS: [&str; 4] = ["k", "a", "b", "c"];
    let vault = vault(&KEYS).await;
    let (provider, credential) = (provider(), login(&vault));
    let config = |key: &str| config(&vault.url(), key);
    let mut all = Vec::new();
    for key in KEYS {
        all.push(provider.prove(&config(key), &credential).await.unwrap().kms);
    }
    all.extend(KEYS.map(|key| provider.open(&config(key), &credential).unwrap()));
    let wrap = async || {
        let all = all.iter().map(async |kms| kms.wrap(&[record()]).await.unwrap().only().unwrap());
        futures::future::join_all(all).await;
    };
    wrap().await;
    assert_eq!(logins(&vault), 1);
    // One login replaces a token that has ended, for all.
    vault.advance(HOUR);
    wrap().await;
    assert_eq!(logins(&vault), 2);
    // So does one renewal, without the secret id.
    for kms in &all {
        vault.advance(HOUR * 2 / 3);
        kms.renew().await.unwrap();
        wrap().await;
    }
    assert_eq!(logins(&vault), 2);
    // Who gives the credential later wants to know whether it is still good.
    pass(Duration::from_secs(61)).await;
    provider.prove(&config("k"), &credential).await.unwrap();
    assert_eq!(logins(&vault), 3);
}

/// A master key more is proved with the token that there is.
#[tokio::test]
async fn a_proof_takes_no_last_login() {
    let vault = vault(&["k", "a"]).await;
    let may_ask =
        "path \"auth/approle/role/node/secret-id/lookup\" { capabilities = [\"update\"] }";
    write(&vault, "sys/policies/acl/may-ask", json!({ "policy": may_ask }));
    let few = json!({ "token_policies": ["node", "may-ask"], "secret_id_num_uses": 2 });
    write(&vault, ROLE, few);
    let (provider, credential) = (provider(), login(&vault));
    let kms = provider.prove(&config(&vault.url(), "k"), &credential).await.unwrap().kms;
    assert_eq!(kms.starts_left().await.unwrap(), Some(1));
    for key in ["a", "k"] {
        pass(Duration::from_secs(61)).await;
        provider.prove(&config(&vault.url(), key), &credential).await.unwrap();
        assert_eq!((kms.starts_left().await.unwrap(), logins(&vault)), (Some(1), 1));
    }
}

/// Vault carries out later what it was asked while it hung.
#[tokio::test]
async fn what_is_left_for_starts_is_not_told_from_memory() {
    let vault = vault(&["k"]).await;
    let kms = provider().open(&config(&vault.url(), "k"), &login(&vault)).unwrap();
    assert_eq!(kms.starts_left().await.unwrap(), None, "no login is made for that");
    assert_eq!(logins(&vault), 0);
    // With a token that may not ask for it, and with one that may.
    for may_ask in
        ["", "path \"auth/approle/role/node/secret-id/lookup\" { capabilities = [\"update\"] }"]
    {
        vault.faults().clear();
        let policy = policy(&config(&vault.url(), "k")) + may_ask;
        write(&vault, "sys/policies/acl/node", json!({ "policy": policy }));
        kms.credential().await.unwrap();
        vault.faults().inject(Fault::Drop.on(""));
        let away = kms.starts_left().await.unwrap_err();
        assert_eq!(away.kind(), KmsErrorKind::Unreachable, "{away:?}");
    }
    assert_eq!(logins(&vault), 1);
}

/// Neither what another secret id got, nor what came from another place.
#[tokio::test]
async fn others_share_no_login() {
    let vault = vault(&["k"]).await;
    write(&vault, "sys/auth/team", json!({ "type": "approle" }));
    let (provider, credential) = (provider(), login(&vault));
    let here = config(&vault.url(), "k");
    let _first = provider.prove(&here, &credential).await.unwrap();
    let _second = provider.prove(&here, &login(&vault)).await.unwrap();
    assert_eq!(logins(&vault), 2);
    let mut elsewhere = credential.clone();
    if let Auth::Login(login) = &mut elsewhere.auth {
        login.path = "team".to_owned();
    }
    refused(provider.open(&here, &elsewhere).unwrap().as_ref()).await;
    let by_name = config(&vault.url().replace("127.0.0.1", "localhost"), "k");
    let _third = provider.prove(&by_name, &credential).await.unwrap();
    assert_eq!(logins(&vault), 3);
    // Once nobody uses it any more, what a login got is forgotten.
    drop(_first);
    let _fourth = provider.prove(&here, &credential).await.unwrap();
    assert_eq!(logins(&vault), 4);
}

/// What was got for a proof alone, or replaced in one, does not stay in Vault until its time is up.
#[tokio::test]
async fn a_token_that_nobody_uses_any_more_is_ended() {
    let vault = vault(&["k"]).await;
    let (provider, credential) = (provider(), login(&vault));
    let here = config(&vault.url(), "k");
    let revoked = || vault.requests().count("auth/token/revoke-self").requests;
    let missing = config(&vault.url(), "no-such-key");
    provider.prove(&missing, &credential).await.unwrap_err();
    assert_eq!((logins(&vault), revoked()), (1, 1));
    let kms = provider.prove(&here, &credential).await.unwrap().kms;
    assert_eq!((logins(&vault), revoked()), (2, 1));
    // Not the one that others use.
    provider.prove(&missing, &credential).await.unwrap_err();
    // Another login is tried for what may not be done, and ended.
    assert_eq!((logins(&vault), revoked()), (3, 2));
    let check = async || {
        pass(Duration::from_secs(11)).await;
        assert!(kms.check(None).await.iter().all(|item| item.failure.is_none()));
    };
    check().await;
    assert_eq!((logins(&vault), revoked()), (4, 3));
    // That it can't be ended is no failure.
    vault.faults().inject(Fault::Drop.on("auth/token/revoke-self"));
    check().await;
    kms.wrap(&[record()]).await.unwrap().only().unwrap();
    assert_eq!((logins(&vault), revoked()), (5, 4));
    vault.faults().clear();
    // Not while another client has it too.
    let other = provider.open(&here, &credential).unwrap();
    kms.leave().await;
    assert_eq!(revoked(), 4);
    drop(other);
    kms.leave().await;
    assert_eq!(revoked(), 5);
    kms.wrap(&[record()]).await.unwrap().only().unwrap();
    assert_eq!(logins(&vault), 6);
}

/// As Vault's roles are by default: no renewal goes past the life that a token was made with.
#[tokio::test]
async fn a_token_that_has_most_of_its_life_before_it_is_not_replaced() {
    let vault = vault(&["k"]).await;
    let ends = json!({ "token_policies": "node", "token_period": 0, "token_ttl": "1h", "token_max_ttl": "1h" });
    write(&vault, ROLE, ends);
    let kms = provider().open(&config(&vault.url(), "k"), &login(&vault)).unwrap();
    for _ in 0..3 {
        kms.renew().await.unwrap();
    }
    assert_eq!(logins(&vault), 1);
    for sent in 2..4 {
        vault.advance(HOUR * 2 / 3);
        let renewed = kms.renew().await.unwrap();
        assert!(renewed.time_left > Some(HOUR * 9 / 10), "{renewed:?}");
        assert_eq!(logins(&vault), sent);
    }
}

/// Two administrators, and a token that one of them has ended.
#[tokio::test]
async fn checks_at_the_same_time_fail_each_other_not() {
    let vault = vault(&["k"]).await;
    let kms = provider().open(&config(&vault.url(), "k"), &login(&vault)).unwrap();
    let check = async || {
        let items = kms.check(None).await;
        let well = items.iter().all(|item| item.outcome == CheckOutcome::Passed);
        assert!(well, "{items:?}");
    };
    kms.master_key().await.unwrap();
    pass(Duration::from_secs(11)).await;
    futures::future::join_all((0..4).map(|_| check())).await;
    assert_eq!(logins(&vault), 5, "each looks at what it gets itself");
    assert_eq!(vault.requests().count("auth/token/revoke-self").requests, 4);
    // One that finds the token gone takes a login, and that is the proof of it.
    vault.advance(HOUR);
    check().await;
    assert_eq!(logins(&vault), 6);
}

/// While Vault hangs: not one deadline after the other.
#[tokio::test]
async fn who_waits_for_a_login_that_fails_is_told_so_with_it() {
    let vault = vault(&["k"]).await;
    let limits =
        Limits { attempt: Duration::from_millis(500), deadline: Duration::from_secs(1), ..LIMITS };
    let kms = VaultProvider::with_limits(limits);
    let kms = kms.open(&config(&vault.url(), "k"), &login(&vault)).unwrap();
    vault.faults().inject(Fault::Delay { milliseconds: 60_000 }.on("auth/approle/login"));
    let begun = Instant::now();
    let all = futures::future::join_all((0..8).map(|_| kms.master_key())).await;
    for error in all.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{error:?}");
        assert!(error.how_to_mend().is_some());
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    vault.faults().clear();
    kms.master_key().await.unwrap();
}
