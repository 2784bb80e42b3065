//! What the operator counts, in the Prometheus text format.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Bounds of the histograms, seconds: a pass takes 0.1 s as a rule and 20 s when PostgreSQL hangs.
const SECONDS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0, 40.0];

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    passes: Family<PassLabels, Counter>,
    pass_seconds: Histogram,
    steps: Family<StepLabels, Counter>,
    step_seconds: Family<KindLabel, Histogram>,
    status_writes: Counter,
    leading: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    step: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("kvcluster_operator");
        let metrics = Self {
            passes: Family::default(),
            pass_seconds: Histogram::new(SECONDS),
            steps: Family::default(),
            step_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            status_writes: Counter::default(),
            leading: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "passes",
            "Passes over a KvCluster by outcome",
            metrics.passes.clone(),
        );
        registry.register(
            "pass_seconds",
            "Time of a pass",
            metrics.pass_seconds.clone(),
        );
        registry.register(
            "steps",
            "Executed steps by kind and outcome",
            metrics.steps.clone(),
        );
        registry.register(
            "step_seconds",
            "Time of a step",
            metrics.step_seconds.clone(),
        );
        registry.register(
            "status_writes",
            "Written statuses",
            metrics.status_writes.clone(),
        );
        registry.register(
            "leading",
            "1 while this process works",
            metrics.leading.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    /// Counts a pass.
    pub fn pass(&self, outcome: &'static str, time: Duration) {
        self.passes.get_or_create(&PassLabels { outcome }).inc();
        self.pass_seconds.observe(time.as_secs_f64());
    }

    /// Counts a step; `outcome` is `done` or the reason of the failure.
    pub fn step(&self, step: &'static str, outcome: &'static str, time: Duration) {
        self.steps
            .get_or_create(&StepLabels { step, outcome })
            .inc();
        self.step_seconds
            .get_or_create(&KindLabel { step })
            .observe(time.as_secs_f64());
    }

    /// Counts a written status.
    pub fn status_write(&self) {
        self.status_writes.inc();
    }

    /// Notes that this process holds the lease.
    pub fn lead(&self) {
        self.leading.set(1);
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.step("CreateTopic", "done", Duration::from_millis(20));
        metrics.pass("ready", Duration::from_millis(50));
        let text = metrics.text().unwrap();
        let line = "kvcluster_operator_steps_total{step=\"CreateTopic\",outcome=\"done\"} 1";
        assert!(text.contains(line), "{text}");
        assert!(
            text.contains("kvcluster_operator_pass_seconds_count 1"),
            "{text}"
        );
    }
}
