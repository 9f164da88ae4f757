//! What is counted of the requests to Vault, through the facade of the crate `metrics`: nothing, while nobody listens there.

use std::time::Duration;

use crate::answer::Answer;
use crate::http::Failure;

const REQUESTS: &str = "coffer_vault_requests_total";
const SECONDS: &str = "coffer_vault_request_duration_seconds";
const RETRIES: &str = "coffer_vault_retries_total";

/// Tells whoever listens what the metrics mean. Once, when the listener is there.
pub fn describe_metrics() {
    metrics::describe_counter!(
        REQUESTS,
        "Requests to Vault, by operation and by its status or the code of what went wrong"
    );
    metrics::describe_histogram!(
        SECONDS,
        metrics::Unit::Seconds,
        "How long Vault took to answer, by operation"
    );
    metrics::describe_counter!(RETRIES, "Requests to Vault that were sent again, by operation");
}

pub(crate) fn asked(operation: &'static str, took: Duration, outcome: &Result<Answer, Failure>) {
    let result = match outcome {
        Ok(answer) => answer.status.as_u16().to_string(),
        Err(failure) => failure.error.kind().code().to_owned(),
    };
    metrics::counter!(REQUESTS, "operation" => operation, "result" => result).increment(1);
    metrics::histogram!(SECONDS, "operation" => operation).record(took);
}

pub(crate) fn asks_again(operation: &'static str) {
    metrics::counter!(RETRIES, "operation" => operation).increment(1);
}
