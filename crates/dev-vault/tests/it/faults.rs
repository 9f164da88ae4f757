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
async fn an_answer_drips() {
    let (vault, client) = vault_with_key().await;
    let whole = client.get("transit/keys/k").await;
    vault.faults().inject(Fault::Drip { bytes: 100, milliseconds: 20, slower_by: 0 }.times(1));
    let start = Instant::now();
    let mut response = client.request("GET", "transit/keys/k").send().await.unwrap();
    let length = response.content_length().unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    let pieces = u32::try_from(length.div_ceil(100)).unwrap();
    assert!(pieces > 3 && start.elapsed() >= Duration::from_millis(20) * pieces);
    let body: Value = serde_json::from_slice(&got).unwrap();
    assert_eq!(body["data"], *whole.data());

    // And slower and slower: 0, 20, 40 ms and so on.
    let drip = Fault::Drip { bytes: 100, milliseconds: 0, slower_by: 20 };
    vault.faults().inject(drip.times(1));
    let start = Instant::now();
    let response = client.request("GET", "transit/keys/k").send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap().len(), got.len());
    assert!(start.elapsed() >= Duration::from_millis(20) * (pieces * (pieces - 1) / 2));
}

#[tokio::test]
async fn an_oversized_answer_has_its_size_and_says_the_same() {
    let (vault, client) = vault_with_key().await;
    let whole = client.get("transit/keys/k").await;
    for (asked, bytes) in [(5 << 20, Some(5 << 20)), (1, None)] {
        vault.faults().inject(Fault::Oversized { bytes: asked }.times(1));
        let response = client.request("GET", "transit/keys/k").send().await.unwrap();
        let got = response.bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&got).unwrap();
        assert_eq!(body["data"], *whole.data());
        assert!(bytes.is_none_or(|bytes| bytes == got.len()), "{}", got.len());
    }
}

#[tokio::test]
async fn a_redirect_leads_anywhere() {
    let (vault, client) = vault_with_key().await;
    let other = DevVault::builder().root_token(vault.root_token()).transit_key("k").start().await;
    let other = other.unwrap();
    let redirect = |location: String, status| Fault::Redirect { location, status };
    // As a standby: the same path at another server.
    vault.faults().inject(redirect(format!("{}{{path}}", other.url()), 307).times(1));
    assert_eq!(client.get("transit/keys/k?list=false").await.status, 200);
    assert_eq!(other.requests().count("transit/keys/k").requests, 1);
    // The same place again: the second time it is answered.
    vault.faults().inject(redirect("{path}".into(), 308).times(1));
    assert_eq!(client.get("transit/keys/k").await.status, 200);
    let quiet = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    vault.faults().inject(redirect("http://127.0.0.1:1/x".into(), 302).times(1));
    let url = format!("{}/v1/transit/keys/k", vault.url());
    let response = quiet.build().unwrap().get(url).send().await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["location"]),
        (reqwest::StatusCode::FOUND, &"http://127.0.0.1:1/x".parse().unwrap())
    );
}

#[tokio::test]
async fn some_items_of_a_batch_fail_as_the_newest_vault_says_it() {
    let (vault, client) = vault_with_key().await;
    let post = async |act: &str, items: &[Value]| {
        client.post(&format!("transit/{act}/k"), json!({ "batch_input": items })).await
    };
    let plain = [1, 2, 3, 4].map(|n| json!({ "plaintext": b64("x"), "reference": n.to_string() }));
    let good = post("encrypt", &plain).await;
    let items = good.data()["batch_results"].as_array().unwrap().clone();
    let error = "cipher: message authentication failed";
    for (act, items, status) in
        [("encrypt", &plain[..], 400), ("decrypt", &items, 400), ("rewrap", &items, 200)]
    {
        let fault = json!({ "fault": "partial_batch", "every": 2, "times": 1 });
        client.post("dev/faults", fault).await;
        let reply = post(act, items).await;
        let results = reply.body["data"]["batch_results"].as_array().unwrap();
        assert_eq!((reply.status, results.len()), (status, 4), "{act}");
        for (n, result) in results.iter().enumerate() {
            let failed = n % 2 == 1;
            assert_eq!(result["error"] == error, failed, "{act}: {result}");
            assert_eq!(result["reference"], (n + 1).to_string());
            assert_eq!(result["ciphertext"].is_null() && result["plaintext"] != b64("x"), failed);
        }
    }
    vault.faults().inject(Fault::PartialBatch { every: 1, error: "no".into() }.times(2));
    assert_eq!(client.get("transit/keys/k").await.status, 200, "it has no items");
    let all = post("decrypt", &items).await;
    assert_eq!(all.body["data"]["batch_results"][3]["error"], "no");
}

#[tokio::test]
async fn requests_beyond_a_rate_wait_for_the_next_window() {
    let (vault, client) = vault_with_key().await;
    let limit = Fault::RateLimit { requests: 2, milliseconds: 60_000 };
    vault.faults().inject(limit.clone().on("transit/").times(3));
    for status in [200, 200, 429, 429] {
        assert_eq!(client.get("auth/token/lookup-self").await.status, 200);
        assert_eq!(client.get("transit/keys/k").await.status, status);
    }
    let response = client.request("GET", "transit/keys/k").send().await.unwrap();
    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    let words = "request path \"transit/keys/k\": rate limit quota exceeded";
    assert_eq!(response.json::<Value>().await.unwrap(), json!({ "errors": [words] }));
    assert_eq!(vault.faults().list(), [], "it has struck three times");

    vault.faults().inject(Fault::RateLimit { requests: 1, milliseconds: 300 });
    let mut answered = 0;
    let start = Instant::now();
    while answered < 3 {
        answered += u32::from(client.get("transit/keys/k").await.status == 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(start.elapsed() >= Duration::from_millis(600), "two windows have passed");
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
