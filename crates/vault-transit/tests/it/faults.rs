//! A Vault with bad days, and an environment that would mislead.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dev_vault::{DevVault, Event, Fault};
use kms_core::{
    Auth, CheckOutcome, Credential, FilesystemKey, Items, KeyRecord, Kms, KmsErrorKind,
    KmsProvider as _, Login,
};
use serde_json::json;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use vault_transit::{Limits, VaultProvider};

use crate::logins::pass;
use crate::shared::{LIMITS, config, open, policy, prove, provider, record};
use crate::tls::tls_before;

async fn vault() -> DevVault {
    DevVault::builder().transit_key("k").start().await.unwrap()
}

fn all<T>(items: Items<T>) -> Vec<T> {
    items.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn breaks_that_pass_are_not_noticed() {
    let vault = vault().await;
    let kms = open(&config(&vault.url(), "k"), vault.root_token());
    for fault in [Fault::Drop, Fault::DropAnswer, Fault::Truncate] {
        for path in ["transit/keys/", "transit/encrypt/", "transit/decrypt/", "transit/rewrap/"] {
            vault.faults().inject(fault.clone().on(path).times(2));
        }
        let wrapped = all(kms.wrap(&[record()]).await.unwrap());
        let wrapped = all(kms.rewrap(&wrapped).await.unwrap());
        all(kms.unwrap(&wrapped).await.unwrap());
        assert!(vault.faults().list().is_empty(), "{:?} were not met", vault.faults().list());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn breaks_that_stay_are_told() {
    let vault = vault().await;
    for (fault, tries) in [
        (Fault::Drop, u64::from(LIMITS.tries)),
        (Fault::Truncate, u64::from(LIMITS.tries)),
        (Fault::RateLimit { requests: 0, milliseconds: 0 }, u64::from(LIMITS.tries)),
        (Fault::Html, 1),
        (Fault::Endless, 1),
        (Fault::Oversized { bytes: 1 << 30 }, 1),
        (Fault::Redirect { location: "http://elsewhere.invalid{path}".into(), status: 307 }, 1),
    ] {
        vault.faults().inject(fault.clone().on("transit/decrypt/"));
        vault.requests().clear();
        let error = prove(&config(&vault.url(), "k"), vault.root_token()).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{fault:?}: {error:?}");
        assert_eq!(vault.requests().count("transit/decrypt/").requests, tries, "{fault:?}");
        vault.faults().clear();
    }
    prove(&config(&vault.url(), "k"), vault.root_token()).await.unwrap();
}

/// Gone, empty, no token, no file: each is told by a look at the file alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_can_not_be_read_is_told_without_vault() {
    let (vault, home) = (vault().await, tempfile::tempdir().unwrap());
    let file = home.path().join("token");
    let credential = Credential::from(Auth::TokenFile(file.clone()));
    let kms = provider().open(&config(&vault.url(), "k"), &credential).unwrap();
    let told = async || {
        let found = kms.credential_here().await.findings;
        assert!(found.iter().all(|found| found.code == "token-file-unreadable"), "{found:?}");
        found.into_iter().map(|found| found.what).collect::<Vec<_>>().join("\n")
    };
    assert!(told().await.contains("no token to ask Vault with"), "{}", told().await);
    let error = kms.master_key().await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::NoCredential, "{error:?}");
    let [item] = &kms.check(None).await[..] else { panic!("it is one thing that is wrong") };
    assert_eq!((item.code.as_str(), item.outcome), ("credential", CheckOutcome::Failed));
    assert!(item.cure.as_ref().unwrap().contains("agent"), "{item:?}");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    for bad in ["", "two words"] {
        write(vault.root_token());
        assert_eq!(told().await, "");
        write(bad);
        assert!(told().await.contains("the token of before goes on"), "{bad:?}");
    }
    assert_eq!(kms.credential_here().await.number, 1, "always the same token");
    write("another-token");
    assert_eq!(kms.credential_here().await.number, 2);
    write("another-token\n");
    assert_eq!(kms.credential_here().await.number, 2);
    std::fs::remove_file(&file).unwrap();
    assert!(told().await.contains("the token of before goes on"));
    std::fs::create_dir(&file).unwrap();
    assert!(told().await.contains("no regular file"));
    assert_eq!(vault.requests().count("").requests, 0);
}

/// Whoever asks, and for what: also by what was opened for another master key there.
#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_asks_for_a_pause_gets_it() {
    let pause = |status, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let headers = BTreeMap::from_iter(headers);
        Fault::Status { status, body: String::new(), headers }.times(1)
    };
    // A date is meant by the clock of who sends it.
    let date = [
        ("date", "Wed, 01 Jan 2020 00:00:00 GMT"),
        ("retry-after", "Wed, 01 Jan 2020 00:01:00 GMT"),
    ];
    for (status, asks) in
        [(429, &[("retry-after", "60")][..]), (503, &[("retry-after", "60")]), (503, &date)]
    {
        let vault = vault().await;
        let limits = Limits { deadline: Duration::from_secs(5), ..LIMITS };
        let provider = VaultProvider::with_limits(limits);
        let token = Credential::token(vault.root_token());
        let open = |key| provider.open(&config(&vault.url(), key), &token).unwrap();
        let (kms, other) = (open("k"), open("another"));
        vault.faults().inject(pause(status, asks));
        for kms in [&kms, &other, &kms] {
            let error = kms.master_key().await.unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{error:?}");
            assert!(error.to_string().contains(&format!("answers {status}")), "{error}");
        }
        assert_eq!(vault.requests().count("").requests, 1, "{status}");
    }
    // Whoever has the time waits within the call.
    let vault = vault().await;
    vault.faults().inject(pause(429, &[("retry-after", "1")]));
    let asked = Instant::now();
    open(&config(&vault.url(), "k"), vault.root_token()).master_key().await.unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(vault.requests().count("").requests, 2);
}

/// Not even to the same host and port, or to the very Vault, which would take the token.
#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_leads_from_https_to_http() {
    let vault = vault().await;
    let (port, certificate) = with_tls(vault.address()).await;
    let mut config = config(&format!("https://127.0.0.1:{port}"), "k");
    config.settings.insert("ca_cert".into(), certificate);
    let kms = open(&config, vault.root_token());
    for origin in [format!("http://127.0.0.1:{port}"), vault.url(), "http://localhost".into()] {
        let location = format!("{origin}{{path}}");
        vault.faults().inject(Fault::Redirect { location, status: 307 }.times(1));
        vault.requests().clear();
        let error = kms.master_key().await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{origin}: {error:?}");
        assert!(error.to_string().contains(&format!("redirects to {origin}")), "{error}");
        assert_eq!(vault.requests().count("").requests, 1, "{origin}");
    }
    // Where TLS stays, it is followed.
    for location in ["{path}".to_owned(), format!("https://127.0.0.1:{port}{{path}}")] {
        vault.faults().inject(Fault::Redirect { location, status: 308 }.times(1));
        kms.master_key().await.unwrap();
    }
}

/// A port with TLS before a server without, and its certificate.
async fn with_tls(server: SocketAddr) -> (u16, String) {
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![issued.cert.der().clone()], key).unwrap();
    (tls_before(server, config).await, issued.cert.pem())
}

/// While the token of before lives, a login that will be refused is seen by a check.
#[tokio::test]
async fn a_check_proves_the_login() {
    let vault = vault().await;
    let kms = by_login(&vault, &policy(&config(&vault.url(), "k")));
    kms.master_key().await.unwrap();
    let renewal = async || {
        // Not what has just been granted.
        pass(Duration::from_secs(11)).await;
        let items = kms.check(None).await;
        let others = items.iter().filter(|item| item.code != "may-renew-self");
        assert!(others.clone().all(|item| item.outcome == CheckOutcome::Passed), "{items:#?}");
        items.into_iter().find(|item| item.code == "may-renew-self").unwrap()
    };
    let granted = renewal().await;
    assert_eq!(granted.outcome, CheckOutcome::Passed);
    assert!(granted.found.contains("that took one"), "what it cost is told: {granted:?}");
    let body = json!({ "errors": ["invalid secret id"] }).to_string();
    let used_up = Fault::Status { status: 400, body, headers: Default::default() };
    vault.faults().inject(used_up.on("auth/approle/login"));
    let refused = renewal().await;
    assert_eq!(refused.failure, Some(KmsErrorKind::Denied), "{refused:?}");
    assert!(refused.cure.unwrap().contains("new secret id"));
}

/// A way to the key by the login of a new AppRole with this policy.
fn by_login(vault: &DevVault, policy: &str) -> Arc<dyn Kms> {
    let admin = |path: &str, body| vault.admin("POST", path, body).unwrap();
    admin("sys/policies/acl/p", json!({ "policy": policy }));
    admin("sys/auth/approle", json!({ "type": "approle" }));
    admin("auth/approle/role/r", json!({ "token_policies": "p", "token_ttl": "1h" }));
    admin("auth/approle/role/r/role-id", json!({ "role_id": "node" }));
    let secret = admin("auth/approle/role/r/secret-id", json!({}));
    let secret = secret["data"]["secret_id"].as_str().unwrap().into();
    let login = Login { path: String::new(), id: "node".to_owned(), secret };
    let credential = Auth::Login(login).into();
    provider().open(&config(&vault.url(), "k"), &credential).unwrap()
}

/// A proxy's web page in place of an answer, when it is to show whether a refused token is still alive: it does not, and
/// the token is not blamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_says_nothing_of_a_token() {
    let vault = vault().await;
    let kms = by_login(&vault, r#"path "transit/keys/k" { capabilities = ["read"] }"#);
    kms.master_key().await.unwrap();

    vault.happen(&Event::ClockJump { seconds: 7200 }).unwrap();
    vault.faults().inject(Fault::Html.on("auth/token/lookup-self").times(1));
    let error = kms.master_key().await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{error:?}");
    kms.master_key().await.unwrap();
}

/// It takes a person to unseal it, so there is nothing to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_vault_is_asked_once() {
    let vault = vault().await;
    let kms = open(&config(&vault.url(), "k"), vault.root_token());
    vault.admin("PUT", "sys/seal", json!({})).unwrap();
    assert_eq!(kms.master_key().await.unwrap_err().kind(), KmsErrorKind::Sealed);
    assert_eq!(vault.requests().count("").requests, 1);
}

/// A check ends after the first question that has no answer, with what it found before.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_a_silent_transit_ends() {
    let vault = vault().await;
    vault.faults().inject(Fault::Delay { milliseconds: 3_600_000 }.on("transit/"));
    let limits = Limits { tries: 1, ..Limits::within(Duration::from_secs(3)) };
    let token = Credential::token(vault.root_token());
    let kms = VaultProvider::with_limits(limits).open(&config(&vault.url(), "k"), &token).unwrap();
    let items = kms.check(None).await;
    let outcomes: Vec<_> = items.iter().map(|item| (item.code.as_str(), item.outcome)).collect();
    assert_eq!(
        outcomes,
        [
            ("answers", CheckOutcome::Passed),
            ("certificate", CheckOutcome::Passed),
            ("may-lookup-self", CheckOutcome::Passed),
            ("may-read-key", CheckOutcome::Failed),
            ("may-encrypt", CheckOutcome::Unknown),
            ("may-decrypt", CheckOutcome::Unknown),
            ("may-rewrap", CheckOutcome::Unknown),
            ("may-renew-self", CheckOutcome::Unknown),
            ("excess", CheckOutcome::Unknown),
        ]
    );
    assert_eq!(items[3].failure, Some(KmsErrorKind::Unreachable));
    // Counted instead of timed: one question alone was waited for.
    assert_eq!(vault.requests().count("transit/").requests, 1);
}

/// The master key is deleted when it has just been read, and the policy lets Vault make keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_goes_between_read_and_encrypt_is_not_made() {
    let vault = vault().await;
    let described = vault.admin("GET", "transit/keys/k", json!({})).unwrap();
    let was_there =
        Fault::Status { status: 200, body: described.to_string(), headers: Default::default() };
    vault.faults().inject(was_there.on("transit/keys/gone").times(1));
    let kms = open(&config(&vault.url(), "gone"), vault.root_token());
    let error = kms.wrap(&[record()]).await.unwrap_err();
    assert_eq!(vault.requests().count("transit/encrypt/gone").requests, 1);
    assert_eq!(error.kind(), KmsErrorKind::KeyMissing, "{error}");
    assert_eq!(kms.master_key().await.unwrap_err().kind(), KmsErrorKind::KeyMissing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_nobody_initialised_is_as_good_as_sealed() {
    let vault = DevVault::builder().not_initialized().start().await.unwrap();
    let error = prove(&config(&vault.url(), "k"), "any-token").await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Sealed, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_keys_are_few_requests() {
    let vault = vault().await;
    let kms = open(&config(&vault.url(), "k"), vault.root_token());
    let keys: Vec<_> = (0..10_000).map(|_| FilesystemKey::generate().unwrap()).collect();
    let records: Vec<_> = keys.iter().map(KeyRecord::of).collect();
    let wrapped = all(kms.wrap(&records).await.unwrap());
    vault.requests().clear();
    let opened = kms.unwrap(&wrapped).await.unwrap();
    let requests = 10_000_usize.div_ceil(LIMITS.batch_items);
    assert_eq!(vault.requests().count("").requests, requests as u64);
    // Each is known by its name, and what it answered by it.
    let ids = opened.requests();
    assert_eq!(ids.len(), requests);
    let of_batch = |n: usize| opened.request_of(n).unwrap() == &ids[n / LIMITS.batch_items];
    assert!((0..10_000).all(of_batch));
    let opened = all(opened);
    assert!(opened.iter().zip(&keys).all(|(record, key)| record.key_id() == key.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_batch_that_fails_ends_the_call() {
    let vault = vault().await;
    let kms = open(&config(&vault.url(), "k"), vault.root_token());
    let records: Vec<_> = (0..3_000).map(|_| record()).collect();
    let wrapped = all(kms.wrap(&records).await.unwrap());
    vault.faults().inject(Fault::Html.on("transit/decrypt/").times(1));
    assert_eq!(kms.unwrap(&wrapped).await.unwrap_err().kind(), KmsErrorKind::Unreachable);
    all(kms.unwrap(&wrapped).await.unwrap());
}

/// Not `VAULT_*` nor a proxy's variable changes where requests go: this test runs another of these tests in a process
/// whose environment leads astray.
#[test]
fn no_variable_changes_the_way() {
    const ASTRAY: &str = "http://127.0.0.1:9";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "faults::breaks_that_pass_are_not_noticed"]);
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "VAULT_ADDR",
        "VAULT_AGENT_ADDR",
        "VAULT_PROXY_ADDR",
        "VAULT_HTTP_PROXY",
    ] {
        child.env(name, ASTRAY).env(name.to_lowercase(), ASTRAY);
    }
    child.env_remove("NO_PROXY").env_remove("no_proxy");
    child
        .env("VAULT_TOKEN", "astray")
        .env("VAULT_NAMESPACE", "astray")
        .env("VAULT_CACERT", "/astray");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
