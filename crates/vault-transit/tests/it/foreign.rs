//! Servers that answer what no Vault does, and Vaults behind proxies that do: redirects, web pages, other JSON.

use std::time::{Duration, Instant};

use kms_core::{Ciphertext, KeyVersion, KmsErrorKind};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wiremock::matchers::{any, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::shared::{LIMITS, config, credential, open, prove, provider};

const TOKEN: &str = "token-that-must-not-show";
const LOOKUP: &str = "/v1/auth/token/lookup-self";
const KEY: &str = "/v1/transit/keys/k";

async fn answers(server: &MockServer, at: &str, answer: ResponseTemplate) {
    Mock::given(path(at)).respond_with(answer).mount(server).await;
}

fn token_answer() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({ "data": {
        "ttl": 0, "expire_time": null, "creation_ttl": 0, "renewable": false, "policies": ["p"], "orphan": true,
    }}))
}

fn key_answer() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({ "data": {
        "name": "k", "type": "aes256-gcm96", "latest_version": 1, "min_decryption_version": 1, "keys": { "1": 1 },
        "derived": false, "deletion_allowed": false, "exportable": false, "allow_plaintext_backup": false,
    }}))
}

async fn requests(server: &MockServer, at: &str) -> usize {
    server.received_requests().await.unwrap().iter().filter(|r| r.url.path() == at).count()
}

fn ciphertexts(count: usize) -> Vec<Ciphertext> {
    vec![Ciphertext { text: "vault:v1:AAAA".to_owned(), version: KeyVersion(1) }; count]
}

async fn unwrap_of(
    server: &MockServer,
    answer: ResponseTemplate,
    count: usize,
) -> kms_core::KmsError {
    server.reset().await;
    answers(server, "/v1/transit/decrypt/k", answer).await;
    let kms = open(&config(&server.uri(), "k"), TOKEN);
    match kms.unwrap(&ciphertexts(count)).await {
        Err(e) => e,
        Ok(items) => items.only().unwrap_err(),
    }
}

#[tokio::test]
async fn a_redirect_takes_the_token_to_no_other_host() {
    let (vault, other) = (MockServer::start().await, MockServer::start().await);
    answers(&other, LOOKUP, token_answer()).await;
    for status in [301, 302, 303, 307, 308] {
        vault.reset().await;
        let to = format!("{}{LOOKUP}", other.uri());
        Mock::given(any())
            .respond_with(ResponseTemplate::new(status).insert_header("location", to))
            .expect(1)
            .mount(&vault)
            .await;
        let error = prove(&config(&vault.uri(), "k"), TOKEN).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Unreachable);
        assert!(error.to_string().contains("redirect"), "{error}");
    }
    assert!(other.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn one_redirect_at_the_same_origin_is_followed() {
    let vault = MockServer::start().await;
    let to = |place: &str| ResponseTemplate::new(307).insert_header("location", place);
    answers(&vault, LOOKUP, to("/v1/elsewhere")).await;
    Mock::given(path("/v1/elsewhere"))
        .and(header("x-vault-token", TOKEN))
        .respond_with(token_answer())
        .expect(1)
        .mount(&vault)
        .await;
    let kms = open(&config(&vault.uri(), "k"), TOKEN);
    kms.credential().await.unwrap();

    // With its body, and not twice.
    answers(&vault, "/v1/transit/decrypt/k", to("/v1/decrypt")).await;
    Mock::given(path("/v1/decrypt"))
        .and(method("POST"))
        .respond_with(to("/v1/again"))
        .expect(1)
        .mount(&vault)
        .await;
    let error = kms.unwrap(&ciphertexts(1)).await.unwrap_err();
    assert!(error.to_string().contains("second redirect"), "{error}");
    assert_eq!(requests(&vault, "/v1/again").await, 0);
    let sent = vault.received_requests().await.unwrap();
    let sent = sent.iter().find(|r| r.url.path() == "/v1/decrypt").unwrap();
    assert!(String::from_utf8_lossy(&sent.body).contains("vault:v1:AAAA"));
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_stays_is_not() {
    let vault = MockServer::start().await;
    for (status, tries) in [
        (412, 4),
        (429, 4),
        (500, 4),
        (502, 4),
        (503, 4),
        (504, 4),
        (400, 1),
        (403, 1),
        (404, 1),
        (405, 1),
        (413, 1),
    ] {
        vault.reset().await;
        let refusal =
            ResponseTemplate::new(status).set_body_json(json!({ "errors": ["no \u{1b}[31m way"] }));
        answers(&vault, LOOKUP, refusal).await;
        let error = open(&config(&vault.uri(), "k"), TOKEN).credential().await.unwrap_err();
        assert_eq!(requests(&vault, LOOKUP).await, tries, "{status}");
        assert!(!error.to_string().contains('\u{1b}'));
        if tries > 1 {
            assert_eq!(error.kind(), KmsErrorKind::Unreachable);
            assert!(
                error.to_string().contains(&format!("answers {status}: no [31m way")),
                "{error}"
            );
        }

        // And then it is well again.
        vault.reset().await;
        Mock::given(path(LOOKUP))
            .respond_with(ResponseTemplate::new(status))
            .up_to_n_times(2)
            .mount(&vault)
            .await;
        answers(&vault, LOOKUP, token_answer()).await;
        let answer = open(&config(&vault.uri(), "k"), TOKEN).credential().await;
        assert_eq!(answer.is_ok(), tries > 1, "{status}");
    }
}

#[tokio::test]
async fn a_quota_says_how_long_to_wait() {
    let vault = MockServer::start().await;
    Mock::given(path(LOOKUP))
        .respond_with(ResponseTemplate::new(429).insert_header("retry-after", "1"))
        .up_to_n_times(1)
        .mount(&vault)
        .await;
    answers(&vault, LOOKUP, token_answer()).await;
    let begun = Instant::now();
    open(&config(&vault.uri(), "k"), TOKEN).credential().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));

    // Longer than the deadline, and than any clock goes: at once.
    for seconds in ["3600", "18446744073709551615"] {
        vault.reset().await;
        let later = ResponseTemplate::new(429).insert_header("retry-after", seconds);
        answers(&vault, LOOKUP, later).await;
        let begun = Instant::now();
        open(&config(&vault.uri(), "k"), TOKEN).credential().await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_eq!(requests(&vault, LOOKUP).await, 1);
    }
}

#[tokio::test]
async fn a_web_page_is_not_a_vault() {
    let server = MockServer::start().await;
    for status in [200, 400, 403, 404] {
        server.reset().await;
        let page =
            ResponseTemplate::new(status).set_body_raw("<html>Please log in</html>", "text/html");
        Mock::given(any()).respond_with(page).mount(&server).await;
        let error = prove(&config(&server.uri(), "k"), TOKEN).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{status}");
        assert!(error.to_string().contains("something else than Vault answered"), "{error}");
        assert!(error.how_to_mend().unwrap().contains("URL"));
    }
}

/// Whether the token or a permission is at fault takes a second request; if that fails, neither is blamed.
#[tokio::test]
async fn no_token_is_blamed_for_a_server_that_breaks() {
    let server = MockServer::start().await;
    let denied =
        ResponseTemplate::new(403).set_body_json(json!({ "errors": ["permission denied"] }));
    answers(&server, KEY, denied).await;
    answers(&server, LOOKUP, ResponseTemplate::new(502)).await;
    let error = open(&config(&server.uri(), "k"), TOKEN).master_key().await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn other_json_is_not_a_vaults() {
    let server = MockServer::start().await;
    let item = json!({ "plaintext": "AAAA" });
    for body in [
        json!(null),
        json!([]),
        json!({}),
        json!({ "data": null }),
        json!({ "data": {} }),
        json!({ "data": { "batch_results": null } }),
        json!({ "data": { "batch_results": {} } }),
        json!({ "data": { "batch_results": [] } }),
        json!({ "data": { "batch_results": [item] } }),
        json!({ "data": { "batch_results": [item, item, item] } }),
        json!({ "data": { "batch_results": ["AAAA", "AAAA"] } }),
        json!({ "data": { "batch_results": [{ "plaintext": 1 }, item] } }),
    ] {
        let answer = ResponseTemplate::new(200).set_body_json(&body);
        let error = unwrap_of(&server, answer, 2).await;
        assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{body}: {error}");
        assert!(error.to_string().contains("something else than Vault"), "{error}");
    }
    for text in ["", "{", "{\"data\":", "\u{0}", "[[[[[[[["] {
        let answer = ResponseTemplate::new(200).set_body_string(text);
        assert_eq!(
            unwrap_of(&server, answer, 2).await.kind(),
            KmsErrorKind::Unreachable,
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn plaintext_that_is_no_key_is_not_authentic() {
    let server = MockServer::start().await;
    let long = "A".repeat(100_000);
    for plaintext in ["", "AAAA", "no base64!", &long, "Q0ZTSwEAAAA="] {
        let body = json!({ "data": { "batch_results": [{ "plaintext": plaintext }] } });
        let error = unwrap_of(&server, ResponseTemplate::new(200).set_body_json(body), 1).await;
        assert_eq!(error.kind(), KmsErrorKind::NotAuthentic, "{error}");
    }
}

#[tokio::test]
async fn ciphertext_that_is_not_vaults_is_not_recorded() {
    let server = MockServer::start().await;
    for text in ["", "AAAA", "vault:AAAA", "vault:v0:AAAA", "vault:vx:AAAA", "local:v1:AAAA"] {
        server.reset().await;
        answers(&server, KEY, key_answer()).await;
        let body = json!({ "data": { "batch_results": [{ "ciphertext": text }] } });
        answers(&server, "/v1/transit/encrypt/k", ResponseTemplate::new(200).set_body_json(body))
            .await;
        let kms = open(&config(&server.uri(), "k"), TOKEN);
        let error = kms.wrap(&[crate::shared::record()]).await.unwrap().only().unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{text}");
    }
}

#[tokio::test]
async fn a_long_answer_is_cut_off() {
    let server = MockServer::start().await;
    let long = ResponseTemplate::new(200).set_body_bytes(vec![b' '; LIMITS.reply_bytes + 1]);
    let error = unwrap_of(&server, long, 1).await;
    assert_eq!(error.kind(), KmsErrorKind::Unreachable);
    assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
    assert_eq!(requests(&server, "/v1/transit/decrypt/k").await, 1);
}

#[tokio::test]
async fn a_namespace_and_the_marks_of_a_client_are_sent() {
    let server = MockServer::start().await;
    Mock::given(path("/base/v1/auth/token/lookup-self"))
        .and(header("x-vault-token", TOKEN))
        .and(header("x-vault-namespace", "admin/storage"))
        .and(header("x-vault-request", "true"))
        .respond_with(token_answer())
        .expect(1)
        .mount(&server)
        .await;
    let mut config = config(&format!("{}/base/", server.uri()), "k");
    config.settings.insert("namespace".into(), "admin/storage".into());
    open(&config, TOKEN).credential().await.unwrap();
}

/// Takes connections, answers each with `answer` once something came in, and counts them.
async fn raw_server(
    answer: &'static [u8],
) -> (u16, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    (port, count)
}

#[tokio::test]
async fn failures_of_tls_are_not_tried_again() {
    let (port, connections) = raw_server(b"HTTP/1.0 400 Bad Request\r\n\r\nno TLS here").await;
    let error = prove(&config(&format!("https://127.0.0.1:{port}"), "k"), TOKEN).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Unreachable);
    assert!(error.to_string().contains("no secure connection"), "{error:?}");
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_of_https_asked_by_http_is_not_a_vault() {
    // What Go's servers answer.
    let (port, _) = raw_server(
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
    )
    .await;
    let error = prove(&config(&format!("http://127.0.0.1:{port}"), "k"), TOKEN).await.unwrap_err();
    assert!(error.to_string().contains("something else than Vault answered"), "{error:?}");
}

#[tokio::test]
async fn connections_that_fail_are_tried_again() {
    // Closed as soon as it was asked.
    let (port, connections) = raw_server(b"").await;
    let error = prove(&config(&format!("http://127.0.0.1:{port}"), "k"), TOKEN).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Unreachable);
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), LIMITS.tries as usize);

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = prove(&config(&format!("http://{nobody}"), "k"), TOKEN).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Unreachable);
    assert!(error.chain().contains("no connection to"), "{}", error.chain());
    assert!(error.chain().contains("refused"), "{}", error.chain());
}

#[tokio::test]
async fn silence_ends() {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(token_answer().set_delay(Duration::from_secs(60)))
        .mount(&server)
        .await;
    let limits = vault_transit::Limits {
        attempt: Duration::from_millis(200),
        deadline: Duration::from_millis(500),
        ..LIMITS
    };
    let kms = kms_core::KmsProvider::open(
        &vault_transit::VaultProvider::with_limits(limits),
        &config(&server.uri(), "k"),
        &credential(TOKEN),
    )
    .unwrap();
    let begun = Instant::now();
    let error = kms.credential().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(error.kind(), KmsErrorKind::Unreachable);
    assert!(error.to_string().contains("no answer"), "{error}");
    assert!(requests(&server, LOOKUP).await > 1);
}

#[tokio::test]
async fn no_more_batches_are_under_way_than_the_limit() {
    use kms_core::KmsProvider as _;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let limits = vault_transit::Limits {
        batch_items: 2,
        in_flight: 3,
        tries: 1,
        attempt: Duration::from_secs(1),
        deadline: Duration::from_secs(1),
        ..LIMITS
    };
    let provider = vault_transit::VaultProvider::with_limits(limits);
    let kms = provider.open(&config(&url, "k"), &credential(TOKEN)).unwrap();
    // Taken, and not answered: whatever is sent at once is there until the deadline.
    let mut under_way = Vec::new();
    let take = async {
        loop {
            under_way.push(listener.accept().await.unwrap());
        }
    };
    let all = ciphertexts(20);
    let error = tokio::select! {
        items = kms.rewrap(&all) => items.unwrap_err(),
        () = take => unreachable!(),
    };
    assert_eq!(error.kind(), KmsErrorKind::Unreachable);
    assert_eq!(under_way.len(), 3);
}

#[tokio::test]
async fn opening_asks_nobody() {
    use kms_core::KmsProvider as _;
    let server = MockServer::start().await;
    let kms = provider().open(&config(&server.uri(), "k"), &credential(TOKEN)).unwrap();
    let shown = format!("{kms:?}");
    assert!(shown.contains("transit/k") && !shown.contains(TOKEN));
    assert!(server.received_requests().await.unwrap().is_empty());
}
