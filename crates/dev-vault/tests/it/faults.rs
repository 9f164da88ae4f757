use std::time::{Duration, Instant};

use dev_vault::{Count, Fault};

use super::*;

#[tokio::test]
async fn faults_strike_where_and_as_often_as_they_are_told() {
    let (vault, client) = vault_with_key().await;
    let status = |status| Fault::Status { status, body: "{}".into(), headers: Default::default() };
    vault.faults().inject(status(500).on("transit/keys/").times(2));
    vault.faults().inject(status(502).on("transit/keys/"));
    assert_eq!(client.get("auth/token/lookup-self").await.status, 200);
    for expected in [500, 500, 502, 502, 502] {
        assert_eq!(client.get("transit/keys/k").await.status, expected);
    }
    assert_eq!(vault.faults().list(), [status(502).on("transit/keys/")]);
    vault.faults().clear();
    assert_eq!(client.get("transit/keys/k").await.status, 200);
}

#[tokio::test]
async fn a_dropped_request_is_not_done_and_a_dropped_answer_is() {
    let (vault, client) = vault_with_key().await;
    let path = "transit/keys/k/rotate";
    let version = async || client.get("transit/keys/k").await.data()["latest_version"].clone();
    vault.faults().inject(Fault::Drop.times(1));
    client.request("POST", path).send().await.unwrap_err();
    assert_eq!(version().await, 1);
    vault.faults().inject(Fault::DropAnswer.times(1));
    client.request("POST", path).send().await.unwrap_err();
    assert_eq!(version().await, 2);
}

#[tokio::test]
async fn a_status_comes_with_its_body_and_headers() {
    let (vault, client) = vault_with_key().await;
    let headers = [("location".to_owned(), "http://elsewhere.invalid/".to_owned())];
    let fault = Fault::Status { status: 429, body: "slow down".into(), headers: headers.into() };
    vault.faults().inject(fault.times(1));
    let response = client.request("GET", "transit/keys/k").send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["location"], "http://elsewhere.invalid/");
    assert_eq!(response.text().await.unwrap(), "slow down");
}

#[tokio::test]
async fn html_comes_with_status_200() {
    let (vault, client) = vault_with_key().await;
    vault.faults().inject(Fault::Html.times(1));
    let response = client.request("GET", "transit/keys/k").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"text/html".parse().unwrap())
    );
    assert!(response.text().await.unwrap().starts_with("<!DOCTYPE html>"));
}

#[tokio::test]
async fn a_truncated_answer_ends_in_the_middle() {
    let (vault, client) = vault_with_key().await;
    let whole =
        client.request("GET", "transit/keys/k").send().await.unwrap().bytes().await.unwrap();
    vault.faults().inject(Fault::Truncate.times(1));
    let mut response = client.request("GET", "transit/keys/k").send().await.unwrap();
    assert_eq!(response.content_length(), Some(whole.len() as u64));
    let mut got = 0;
    let end = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => got += chunk.len(),
            end => break end,
        }
    };
    assert!(end.is_err(), "the connection was closed early");
    assert_eq!(got, whole.len() / 2);
}

#[tokio::test]
async fn an_endless_answer_goes_on() {
    let (vault, client) = vault_with_key().await;
    vault.faults().inject(Fault::Endless.times(1));
    let mut response = client.request("GET", "transit/keys/k").send().await.unwrap();
    let mut got = 0;
    while got < 64 << 20 {
        got += response.chunk().await.unwrap().expect("more").len();
    }
    // It does not keep the server from answering others, nor from stopping.
    assert_eq!(client.get("transit/keys/k").await.status, 200);
    vault.stop().await;
}

#[tokio::test]
async fn a_delay_holds_up_only_its_own_request() {
    let (vault, client) = vault_with_key().await;
    vault.faults().inject(Fault::Delay { milliseconds: 300 }.on("transit/").times(1));
    let start = Instant::now();
    let (slow, quick) = tokio::join!(
        async { (client.get("transit/keys/k").await.status, start.elapsed()) },
        async { (client.get("auth/token/lookup-self").await.status, start.elapsed()) },
    );
    assert_eq!((slow.0, quick.0), (200, 200));
    assert!(slow.1 >= Duration::from_millis(300) && quick.1 < slow.1, "{slow:?} {quick:?}");
}

#[tokio::test]
async fn requests_and_items_are_counted() {
    let (vault, client) = vault_with_key().await;
    let items = json!([{ "plaintext": "" }, { "plaintext": "" }, { "plaintext": "" }]);
    client.post("transit/encrypt/k", json!({ "batch_input": items })).await;
    client.post("transit/encrypt/k", json!({ "plaintext": "" })).await;
    client.get("transit/keys/k").await;
    vault.faults().inject(Fault::Html.times(1));
    client.request("GET", "transit/keys/k").send().await.unwrap();
    let requests = vault.requests();
    assert_eq!(requests.count("transit/encrypt/"), Count { requests: 2, items: 4 });
    assert_eq!(requests.count("transit/keys/k"), Count { requests: 2, items: 2 });
    assert_eq!(requests.count("transit/"), Count { requests: 4, items: 6 });
    assert_eq!(requests.all().len(), 2);
    requests.clear();
    assert_eq!(requests.count(""), Count::default());
}

#[tokio::test]
async fn other_processes_order_faults_over_http() {
    let (vault, client) = vault_with_key().await;
    let rule = json!({ "fault": "status", "status": 503, "body": "{\"errors\":[]}", "path": "transit/", "times": 1 });
    assert_eq!(client.post("dev/faults", rule).await.status, 204);
    assert_eq!(client.get("dev/faults").await.data()["rules"][0]["status"], 503);
    assert_eq!(client.get("transit/keys/k").await.status, 503);
    assert_eq!(client.get("transit/keys/k").await.status, 200);
    assert_eq!(client.get("dev/requests").await.data()["transit/keys/k"]["requests"], 2);

    for fault in ["drop", "drop_answer", "html", "truncate", "endless"] {
        let injected = client.post("dev/faults", json!({ "fault": fault })).await;
        assert_eq!(injected.status, 204, "{fault}");
    }
    assert_eq!(
        client.post("dev/faults", json!({ "fault": "delay", "milliseconds": 1 })).await.status,
        204
    );
    assert_eq!(client.post("dev/faults", json!({ "fault": "gremlins" })).await.status, 400);
    assert_eq!(vault.faults().list().len(), 6);
    assert_eq!(client.delete("dev/faults").await.status, 204);
    assert_eq!(client.delete("dev/requests").await.status, 204);
    assert_eq!((vault.faults().list().len(), vault.requests().all().len()), (0, 0));

    let other = client.with_policy("dev", "path \"dev/*\" { capabilities = [\"read\"] }").await;
    for path in ["dev/faults", "dev/requests"] {
        assert_refused(&other.get(path).await, 403, DENIED);
        assert_refused(&other.without_token().get(path).await, 403, DENIED);
    }
}
