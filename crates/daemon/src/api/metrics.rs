//! `/metrics`: what the process has counted, and the node's state at this moment, in Prometheus' text format.

use std::sync::Arc;
use std::time::Duration;

use admin_api::{FilesystemCounts, Finding, Job, OwnKey, Status, paths};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use metrics::{describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::{Refusal, status};
use crate::Shared;
use crate::seen::NOT_ASKED;

/// Prometheus' text exposition format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Shows metrics, as Prometheus takes them.
#[utoipa::path(
    get,
    path = paths::METRICS,
    operation_id = "getMetrics",
    tag = "node",
    responses((status = 200, description = "In the text format of Prometheus", body = String, content_type = "text/plain")),
)]
pub(crate) async fn show(State(shared): State<Arc<Shared>>) -> Result<impl IntoResponse, Refusal> {
    let (status, jobs) = status::status(&shared).await?;
    let now = Duration::from_millis(shared.clock.now().0);
    let last_success = shared.health.since_success().map(|ago| now.saturating_sub(ago));
    let state = state(&status, &jobs, last_success);
    Ok(([(header::CONTENT_TYPE, TEXT)], shared.meters.text() + &state))
}

/// A recorder of its own each time: what is gone, such as a version of the master key, is not shown any more.
fn state(status: &Status, jobs: &[Job], last_success: Option<Duration>) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        describe();
        gauge!("coffer_start_time_seconds").set(seconds(status.started_at));
        filesystems(&status.filesystems);
        kms(status, last_success);
        jobs.iter().for_each(job);
        findings(status.findings.iter().chain(&status.kms.findings));
    });
    recorder.handle().render()
}

fn describe() {
    describe_gauge!("coffer_start_time_seconds", "When the node started, in Unix seconds");
    describe_gauge!("coffer_filesystems", "Filesystems by state");
    describe_gauge!(
        "coffer_filesystems_exposed",
        "Filesystems whose key has lain under local wrapping"
    );
    describe_gauge!(
        "coffer_wrapped_keys",
        "Filesystem keys by what wraps them, and by the version of the master key"
    );
    describe_gauge!("coffer_kms_configured", "Whether a KMS is set");
    describe_gauge!(
        "coffer_kms_up",
        "Whether the KMS answered the last look as it should; absent before the first"
    );
    describe_gauge!(
        "coffer_kms_last_success_timestamp_seconds",
        "When the KMS last answered a look as it should"
    );
    describe_gauge!(
        "coffer_own_master_key_up",
        "Whether the KMS answered as it should for a master key that filesystems have of their own; 0 too while it does not answer at all, absent before it was asked"
    );
    describe_gauge!(
        "coffer_token_seconds_left",
        "How long the token lives, counted down from the last time that the KMS told it; absent where it never ends or is not known"
    );
    describe_gauge!(
        "coffer_token_renewed_for_ever",
        "Whether the token can be renewed without an end; 0 too while its renewal is refused"
    );
    describe_gauge!("coffer_job_items", "Items of jobs that run or wait, by what became of them");
    describe_gauge!("coffer_job_bytes_done", "Bytes that jobs that run or wait have done");
    describe_gauge!("coffer_findings", "Warnings by code");
}

fn filesystems(counts: &FilesystemCounts) {
    let FilesystemCounts { total: _, unlocked, locked, unlocking, deleting, exposed } = *counts;
    for (state, count) in [
        ("unlocked", unlocked),
        ("locked", locked),
        ("unlocking", unlocking),
        ("deleting", deleting),
    ] {
        gauge!("coffer_filesystems", "state" => state).set(number(count));
    }
    gauge!("coffer_filesystems_exposed").set(number(exposed));
}

fn kms(status: &Status, last_success: Option<Duration>) {
    for count in &status.kms.keys {
        let labels = [
            ("kms", count.kind.clone()),
            ("master_key", count.master_key.clone()),
            ("version", count.version.to_string()),
            ("base_url", count.base_url.clone()),
            ("transit_path", count.transit_path.clone()),
            ("namespace", count.namespace.clone().unwrap_or_default()),
        ];
        gauge!("coffer_wrapped_keys", &labels).set(number(count.keys));
    }
    let configured = status.kms.configured.as_ref();
    gauge!("coffer_kms_configured").set(truth(configured.is_some()));
    let Some(details) = configured else { return };
    let not_asked = details.problem.as_ref().is_some_and(|problem| problem.code == NOT_ASKED);
    if !not_asked {
        gauge!("coffer_kms_up").set(truth(details.does_all));
    }
    if let Some(at) = last_success {
        gauge!("coffer_kms_last_success_timestamp_seconds").set(at.as_secs_f64());
    }
    for OwnKey { master_key, does_all, .. } in &details.own_keys {
        if let Some(does_all) = does_all {
            gauge!("coffer_own_master_key_up", "master_key" => master_key.clone())
                .set(truth(*does_all));
        }
    }
    if let Some(life) = details.credential {
        // What it was when it could still be renewed says nothing once that is refused.
        let refused = status.kms.findings.iter().any(|found| found.code == "token-not-renewed");
        gauge!("coffer_token_renewed_for_ever")
            .set(truth(life.renewable && life.periodic && !refused));
        if let Some(left) = life.seconds_left {
            gauge!("coffer_token_seconds_left").set(number(left));
        }
    }
}

fn job(Job { id, kind, progress, .. }: &Job) {
    let kind = serde_json::to_value(kind).ok();
    let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default().to_owned();
    let items = [
        ("done", Some(progress.items)),
        ("failed", Some(progress.failed_items)),
        ("total", progress.total_items),
    ];
    for (of, count) in items {
        let labels = [("job", id.clone()), ("kind", kind.clone()), ("of", of.to_owned())];
        if let Some(count) = count {
            gauge!("coffer_job_items", &labels).set(number(count));
        }
    }
    let labels = [("job", id.clone()), ("kind", kind)];
    gauge!("coffer_job_bytes_done", &labels).set(number(progress.bytes));
}

fn findings<'a>(findings: impl Iterator<Item = &'a Finding>) {
    for Finding { code, .. } in findings {
        gauge!("coffer_findings", "code" => code.clone()).increment(1.0);
    }
}

/// Exact up to 2^53, which no count here comes to.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn number(count: u64) -> f64 {
    count as f64
}

fn seconds(unix_millis: u64) -> f64 {
    number(unix_millis) / 1000.0
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests {
    use admin_api::{CredentialLife, Kms, KmsDetails, VersionCount};

    use super::*;

    fn status(versions: &[u64]) -> Status {
        let count = |version: &u64| VersionCount {
            kind: "vault".into(),
            base_url: "https://v".into(),
            transit_path: "transit".into(),
            namespace: None,
            master_key: "a \"key\"".into(),
            version: *version,
            keys: 7,
            canary: false,
        };
        let finding =
            Finding { code: "keys-exposed".into(), what: String::new(), cure: String::new() };
        Status {
            version: String::new(),
            pid: 1,
            started_at: 1500,
            state_dir: std::path::Path::new("/").into(),
            filesystems: FilesystemCounts {
                total: 3,
                unlocked: 2,
                locked: 1,
                ..Default::default()
            },
            jobs_running: 0,
            kms: Kms {
                version: String::new(),
                configured: None,
                keys: versions.iter().map(count).collect(),
                exposed_keys: 0,
                findings: vec![finding],
            },
            findings: Vec::new(),
        }
    }

    #[test]
    fn what_is_gone_is_not_shown_any_more() {
        let before = state(&status(&[1, 2]), &[], None);
        let line = |version| {
            format!(
                r#"coffer_wrapped_keys{{kms="vault",master_key="a \"key\"",version="{version}",base_url="https://v",transit_path="transit",namespace=""}} 7"#
            )
        };
        assert!(before.contains(&line(1)) && before.contains(&line(2)), "{before}");
        let after = state(&status(&[2]), &[], None);
        assert!(!after.contains(&line(1)) && after.contains(&line(2)), "{after}");
        for expected in [
            "# TYPE coffer_filesystems gauge",
            r#"coffer_filesystems{state="unlocked"} 2"#,
            r#"coffer_findings{code="keys-exposed"} 1"#,
            "coffer_start_time_seconds 1.5",
            "coffer_kms_configured 0",
        ] {
            assert!(after.contains(expected), "{expected}: {after}");
        }
        assert!(!after.contains("coffer_kms_up "), "{after}");
    }

    #[test]
    fn a_token_whose_renewal_is_refused_is_not_renewed_for_ever() {
        let life = CredentialLife {
            seconds_left: Some(600),
            renewable: true,
            periodic: true,
            told_seconds_ago: 0,
        };
        let mut status = status(&[1]);
        status.kms.configured = Some(KmsDetails {
            id: String::new(),
            kind: "vault".into(),
            base_url: String::new(),
            master_key: "k".into(),
            transit_path: "transit".into(),
            namespace: None,
            ca_cert: None,
            auth_method: "approle".into(),
            token_file: None,
            role_id: None,
            auth_path: None,
            client_cert: false,
            credential_set: true,
            credential: Some(life),
            latest_version: Some(1),
            min_decryption_version: None,
            lowest_needed: None,
            held_back_by: Vec::new(),
            problem: None,
            does_all: true,
            own_keys: Vec::new(),
        });
        let shown = state(&status, &[], None);
        assert!(shown.contains("coffer_token_renewed_for_ever 1\n"), "{shown}");
        status.kms.findings[0].code = "token-not-renewed".into();
        let shown = state(&status, &[], None);
        assert!(shown.contains("coffer_token_renewed_for_ever 0\n"), "{shown}");
        assert!(shown.contains("coffer_token_seconds_left 600\n"), "{shown}");
    }
}
