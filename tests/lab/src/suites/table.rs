//! The suites. A new one is one more entry here.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::args;

/// Stands for the lab's own helm in a command.
pub const HELM: &str = "<helm>";

/// What a suite runs against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The source alone.
    Nothing,
    /// Kafka and PostgreSQL as plain processes.
    Services,
    /// The store and its services as plain processes.
    Local,
    /// The same with three brokers.
    ThreeBrokers,
    /// A kind cluster.
    Kind,
}

/// What a suite does.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// These commands, one after the other.
    Commands(&'static [&'static [&'static str]]),
    /// The check of the source's structure.
    Structure,
}

/// One suite.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// What `--only` calls it.
    pub name: &'static str,
    /// What it does.
    pub work: Work,
    /// What it runs against.
    pub need: Need,
    /// Packages it needs, each with a file that it brings.
    pub packages: &'static [(&'static str, &'static str)],
    /// How long it should take at most, on two cores with nothing compiled.
    pub budget: Duration,
}

/// Real input: 34,924 lines that Unicode is made of.
const INPUT: &[(&str, &str)] = &[("unicode-data", "/usr/share/unicode/UnicodeData.txt")];

/// What cuts connections.
const FILTER: &[(&str, &str)] = &[("iptables", "/usr/sbin/iptables")];

const fn suite(name: &'static str, need: Need, budget_seconds: u64, work: Work) -> Suite {
    let packages = match need {
        Need::Local | Need::Kind => INPUT,
        Need::ThreeBrokers => FILTER,
        Need::Nothing | Need::Services => &[],
    };
    Suite {
        name,
        work,
        need,
        packages,
        budget: Duration::from_secs(budget_seconds),
    }
}

const SUITES: [Suite; 10] = [
    suite(
        "format",
        Need::Nothing,
        20,
        Work::Commands(&[&["cargo", "fmt", "--all", "--check"]]),
    ),
    suite("structure", Need::Nothing, 5, Work::Structure),
    suite(
        "lint",
        Need::Nothing,
        600,
        Work::Commands(&[LINT, LINT_SUITES]),
    ),
    suite("unit", Need::Services, 900, Work::Commands(&[UNIT])),
    suite("seeds", Need::Services, 600, Work::Commands(&[SEEDS])),
    suite(
        "conformance",
        Need::Services,
        300,
        Work::Commands(&[CONFORMANCE]),
    ),
    suite("charts", Need::Nothing, 300, Work::Commands(CHARTS)),
    suite("local", Need::Local, 600, Work::Commands(&[LOCAL])),
    suite(
        "histories",
        Need::ThreeBrokers,
        900,
        Work::Commands(&[SEEDED_NODE, HISTORIES]),
    ),
    suite("kind", Need::Kind, 1_500, Work::Commands(&[KIND])),
];

// Every command takes the whole workspace and then chooses targets: a choice of packages would choose other features of what
// they share, and compile the heavy crates once more.
const LINT: &[&str] = &[
    "cargo",
    "clippy",
    "--workspace",
    "--all-targets",
    "--locked",
    "--",
    "-D",
    "warnings",
];
/// `--all-targets` leaves out what `cargo test` leaves out.
const LINT_SUITES: &[&str] = &[
    "cargo",
    "clippy",
    "--workspace",
    "--locked",
    "--test",
    "charts",
    "--test",
    "local",
    "--test",
    "histories",
    "--test",
    "kind",
    "--test",
    "conformance",
    "--",
    "-D",
    "warnings",
];
const UNIT: &[&str] = &["cargo", "test", "--workspace", "--locked", "--no-fail-fast"];
/// Deliberate mistakes, which the model, the simulations, the store's tests and the operator's must catch; in a build of their own.
const SEEDS: &[&str] = &[
    "cargo",
    "test",
    "--workspace",
    "--locked",
    "--features",
    "kvcluster-sim/seeded-bugs,kvcluster-operator/seeded-bugs",
    "--lib",
    "--test",
    "model",
    "--test",
    "simulation",
    "--test",
    "nodes",
    "--test",
    "store",
    "--",
    "--nocapture",
    "seeded",
];
/// The cases that the simulated log and store share with Kafka and PostgreSQL.
const CONFORMANCE: &[&str] = &[
    "cargo",
    "test",
    "--workspace",
    "--locked",
    "--test",
    "conformance",
    "--",
    "--nocapture",
];
const CHARTS: &[&[&str]] = &[
    &[HELM, "lint", "--strict", "charts/kvcluster"],
    &[HELM, "lint", "--strict", "charts/kvcluster-dev"],
    &[
        HELM,
        "template",
        "--kube-version",
        "1.34.0",
        "kvcluster",
        "charts/kvcluster",
    ],
    &[
        HELM,
        "template",
        "--kube-version",
        "1.34.0",
        "kvcluster-dev",
        "charts/kvcluster-dev",
    ],
    &[
        "cargo",
        "test",
        "--workspace",
        "--locked",
        "--test",
        "charts",
    ],
];
const LOCAL: &[&str] = &[
    "cargo",
    "test",
    "--workspace",
    "--locked",
    "--test",
    "local",
    "--",
    "--test-threads=1",
];
/// The program with a deliberate mistake, and a test for the sake of the features that tests choose.
const SEEDED_NODE: &[&str] = &[
    "cargo",
    "build",
    "--workspace",
    "--locked",
    "--features",
    "kvcluster-sim/seeded-bugs",
    "--bin",
    "kvcluster-node-seeded",
    "--test",
    "model",
];
const HISTORIES: &[&str] = &[
    "cargo",
    "test",
    "--workspace",
    "--locked",
    "--test",
    "histories",
    "--",
    "--test-threads=1",
    "--nocapture",
];
const KIND: &[&str] = &[
    "cargo",
    "test",
    "--workspace",
    "--locked",
    "--test",
    "kind",
    "--",
    "--test-threads=1",
    "--nocapture",
];

impl Need {
    /// The name and the budget of bringing it up, if there is something to bring up.
    pub fn bringing(self) -> Option<(&'static str, Duration)> {
        match self {
            Self::Nothing => None,
            Self::Services => Some(("(services)", Duration::from_mins(5))),
            Self::Local => Some(("(local)", Duration::from_mins(10))),
            Self::ThreeBrokers => Some(("(three brokers)", Duration::from_mins(10))),
            Self::Kind => Some(("(up)", Duration::from_mins(40))),
        }
    }

    /// Whether what this needs and what another needs go away together.
    pub fn shares_with(self, other: Self) -> bool {
        self.mode() == other.mode() && self.brokers() == other.brokers()
    }

    /// How many brokers a suite runs against.
    pub fn brokers(self) -> u16 {
        if self == Self::ThreeBrokers {
            3
        } else {
            args::USUAL_BROKERS
        }
    }

    /// What `cargo lab status` should speak of inside the suite.
    pub fn mode(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Services | Self::Local | Self::ThreeBrokers => Some("local"),
            Self::Kind => Some("kind"),
        }
    }
}

/// The suites with these names, in the table's order; all if there are none.
pub fn select(only: &[String]) -> Result<Vec<Suite>> {
    if let Some(unknown) = only
        .iter()
        .find(|name| SUITES.iter().all(|suite| suite.name != **name))
    {
        let known: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        bail!(
            "there is no suite {unknown}; there are {}",
            known.join(", ")
        );
    }
    let wanted = |suite: &Suite| only.is_empty() || only.iter().any(|name| name == suite.name);
    Ok(SUITES.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str]) -> Result<Vec<&'static str>> {
        let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
        Ok(select(&only)?.iter().map(|suite| suite.name).collect())
    }

    #[test]
    fn suites_are_chosen_by_name() {
        assert_eq!(names(&[]).expect("all").len(), SUITES.len());
        assert_eq!(
            names(&["unit", "format"]).expect("both exist"),
            ["format", "unit"]
        );
        assert!(
            names(&["nothing"])
                .expect_err("it does not exist")
                .to_string()
                .contains("kind")
        );
    }

    #[test]
    fn what_needs_most_runs_last() {
        assert!(Need::Services.shares_with(Need::Local) && !Need::Local.shares_with(Need::Kind));
        let needs: Vec<Need> = SUITES.iter().map(|suite| suite.need).collect();
        assert_eq!(
            needs[needs.len() - 3..],
            [Need::Local, Need::ThreeBrokers, Need::Kind]
        );
        assert!(
            !Need::Local.shares_with(Need::ThreeBrokers),
            "another size is another store"
        );
    }
}
