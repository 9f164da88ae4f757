//! What the parts of the process count, for `/metrics`: they count through the facade of the crate `metrics`, and this listens.

use std::fmt;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of the classes of how long something took, in seconds: from what a KMS beside us needs to its deadline.
const SECONDS: [f64; 12] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// Listens to what is counted.
#[derive(Clone)]
pub struct Meters(PrometheusHandle);

impl Meters {
    /// Listens for the whole process. A process has one; another one of the same process hears nothing.
    ///
    /// # Errors
    /// What the exporter refuses, which is a defect of ours.
    pub fn install() -> Result<Self, BuildError> {
        let builder = PrometheusBuilder::new();
        let seconds = Matcher::Suffix("_seconds".to_owned());
        let recorder = builder.set_buckets_for_metric(seconds, &SECONDS)?.build_recorder();
        let meters = Self(recorder.handle());
        // The one that is there goes on listening.
        let _ = metrics::set_global_recorder(recorder);
        Ok(meters)
    }

    /// All of it, in Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        self.sum_up();
        self.0.render()
    }

    /// Puts single samples into their classes. Somebody has to do it now and then, also while nobody asks for the text.
    pub(crate) fn sum_up(&self) {
        self.0.run_upkeep();
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meters")
    }
}
