//! `/metrics`: what Prometheus sees of keys, token, KMS and jobs.

use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::Place;

/// The value of a metric with these labels, as they stand there.
fn value(text: &str, metric: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok())
}

fn until(place: &Place, holds: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = place.metrics();
        if holds(&text) {
            return text;
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn keys_token_and_requests_are_measured() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let _node = place.start();
    assert_eq!(value(&place.metrics(), "coffer_kms_configured"), Some(0.0));
    let token = kms.token();
    place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
    for name in ["a", "b"] {
        place.ok(&["fs", "create", name]);
    }
    let keys = |version| {
        format!(
            r#"coffer_wrapped_keys{{kms="vault",master_key="{KEY}",version="{version}",base_url="{}",transit_path="transit",namespace=""}}"#,
            kms.url()
        )
    };
    let before = until(&place, |text| value(text, "coffer_kms_up") == Some(1.0));
    assert_eq!(value(&before, &keys(1)), Some(2.0), "{before}");
    assert_eq!(value(&before, r#"coffer_filesystems{state="unlocked"}"#), Some(2.0));
    let left = value(&before, "coffer_token_seconds_left").unwrap();
    assert!((3000.0..=3600.0).contains(&left), "{before}");
    assert_eq!(value(&before, "coffer_token_renewed_for_ever"), Some(1.0));
    let asked = |text: &str, operation| {
        let labels = format!(r#"{{operation="{operation}",result="200"}}"#);
        value(text, &format!("coffer_vault_requests_total{labels}")).unwrap_or_default()
    };
    let encrypts = asked(&before, "encrypt");
    assert!(encrypts >= 3.0, "a probe, and each key: {before}");
    let timed =
        format!(r#"coffer_vault_request_duration_seconds_count{{operation="encrypt"}} {encrypts}"#);
    assert!(before.contains(&timed), "{before}");

    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    let after = place.metrics();
    assert_eq!((value(&after, &keys(1)), value(&after, &keys(2))), (None, Some(2.0)), "{after}");
    assert!(asked(&after, "rewrap") > asked(&before, "rewrap"), "{after}");

    drop(kms);
    place.fails(3, &["fs", "create", "c"]);
    let away = until(&place, |text| value(text, "coffer_kms_up") == Some(0.0));
    let failed = r#"coffer_vault_requests_total{operation="read-key",result="kms-unreachable"}"#;
    assert!(value(&away, failed).is_some_and(|count| count >= 1.0), "{away}");
    assert!(value(&away, "coffer_kms_last_success_timestamp_seconds").is_some(), "{away}");
    assert!(!away.contains(&token));
}
