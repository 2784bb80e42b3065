//! `cargo lab test`: every suite, what it needs, and its time against its budget.

pub mod report;
pub mod structure;
pub mod table;

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build::go::HELM;
use crate::cache::Layout;
use crate::cluster::Cluster;
use crate::local::{self, parts::Lab};
use crate::machine::packages;
use crate::progress::Progress;
use crate::suites::report::{Counts, Line};
use crate::suites::table::{Need, Suite, Work};
use crate::{down, shell, up};

/// Variables that name the services to tests that use one of them alone.
const POSTGRES_VARIABLE: &str = "KVCLUSTER_TEST_POSTGRES_URL";
const KAFKA_VARIABLE: &str = "KVCLUSTER_TEST_KAFKA";

/// Runs the suites and prints the summary; `false` if anything failed.
pub fn run(layout: &Layout, progress: &Progress, long: bool, only: &[String]) -> Result<bool> {
    let suites = table::select(only)?;
    let mut runner = Runner {
        layout,
        progress,
        long,
        brought: Vec::new(),
    };
    let mut lines = Vec::new();
    for (index, suite) in suites.iter().enumerate() {
        if let Some(line) = runner.bring(suite.need) {
            let is_up = line.counts.failed == 0;
            lines.push(line);
            if !is_up {
                lines.push(Line::failed(suite));
                continue;
            }
        }
        lines.push(runner.suite(suite));
        let later: Vec<Need> = suites
            .iter()
            .skip(index + 1)
            .map(|suite| suite.need)
            .collect();
        runner.take_down(&later)?;
    }
    print!("{}", report::render(&lines));
    Ok(report::total(&lines).failed == 0)
}

/// Runs the measuring program.
pub fn bench(layout: &Layout, arguments: &[String]) -> Result<bool> {
    let words = [
        "cargo",
        "run",
        "-q",
        "-p",
        "kvcluster-suite",
        "--bin",
        "bench",
        "--",
    ];
    let mut command = shell::command(&words);
    let status = command
        .args(arguments)
        .current_dir(layout.source(""))
        .status();
    Ok(status.context("cannot run cargo")?.success())
}

struct Runner<'a> {
    layout: &'a Layout,
    progress: &'a Progress,
    long: bool,
    /// What this run brought up, and so takes down.
    brought: Vec<Need>,
}

impl Runner<'_> {
    /// Brings up what a suite needs and does not run yet; a line if there was something to do.
    fn bring(&mut self, need: Need) -> Option<Line> {
        let (name, budget) = need.bringing()?;
        let lab = Lab::load(self.layout).unwrap_or_default();
        let is_there = match need {
            Need::Kind => Cluster::running(self.layout).is_some(),
            _ => !lab.parts.is_empty(),
        };
        if !is_there {
            self.brought.push(need);
        }
        let started = Instant::now();
        // Also where it runs already: the store in it may be older than the source.
        let result = match need {
            Need::Kind => up::run(self.layout, self.progress),
            _ => local::up(
                self.layout,
                self.progress,
                &lab.options(need == Need::Services),
            ),
        };
        let failed = u32::from(result.is_err());
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
        }
        let counts = Counts { passed: 0, failed };
        Some(Line {
            name: name.to_owned(),
            counts,
            took: started.elapsed(),
            budget,
        })
    }

    fn take_down(&mut self, later: &[Need]) -> Result<()> {
        for need in std::mem::take(&mut self.brought) {
            if later.iter().any(|other| need.shares_with(*other)) {
                self.brought.push(need);
                continue;
            }
            let _lock = self.layout.lock()?;
            match need {
                Need::Kind => down::kind(self.layout, self.progress)?,
                _ => local::stop(self.layout, self.progress)?,
            }
        }
        Ok(())
    }

    fn suite(&self, suite: &Suite) -> Line {
        let started = Instant::now();
        let log = self.layout.log(&format!("suite-{}", suite.name));
        let result = self.progress.step(&format!("suite {}", suite.name), |_| {
            let counts = self.work(suite, &log)?;
            if counts.failed > 0 {
                bail!("{} failed; log {}", counts.failed, log.display());
            }
            Ok(counts)
        });
        let counts = match result {
            Ok(counts) => counts,
            Err(error) => {
                eprintln!("{error:#}\n{}", report::failures(&log));
                failed_counts(&log)
            }
        };
        Line {
            name: suite.name.to_owned(),
            counts,
            took: started.elapsed(),
            budget: suite.budget,
        }
    }

    fn work(&self, suite: &Suite, log: &Path) -> Result<Counts> {
        // A log of this run only: it is what the counts are read from.
        let _ = std::fs::remove_file(log);
        let commands = match suite.work {
            Work::Structure => return structure::check(self.layout, log),
            Work::Commands(commands) => commands,
        };
        packages::ensure(self.layout, suite.packages)?;
        let mut commands_passed = 0;
        for words in commands {
            self.command(words, suite.need, log)?;
            commands_passed += 1;
        }
        let text = std::fs::read(log)?;
        let parsed = report::parse(&String::from_utf8_lossy(&text));
        Ok(parsed.unwrap_or(Counts {
            passed: commands_passed,
            failed: 0,
        }))
    }

    fn command(&self, words: &[&str], need: Need, log: &Path) -> Result<()> {
        let helm = self.layout.artifact("helm", &HELM.key()).join("helm");
        let words: Vec<String> = words
            .iter()
            .map(|word| {
                if *word == table::HELM {
                    helm.display().to_string()
                } else {
                    (*word).to_owned()
                }
            })
            .collect();
        let uses_helm = words
            .iter()
            .any(|word| Some(word.as_str()) == helm.to_str() || word == "charts");
        if uses_helm {
            HELM.built(self.layout, self.progress)?;
        }
        let mut command = shell::command(&words);
        command
            .current_dir(self.layout.source(""))
            .env("KVCLUSTER_HELM", &helm);
        command
            .env("CARGO_TERM_COLOR", "never")
            .stdin(Stdio::null());
        if let Some(mode) = need.mode() {
            command.env("KVCLUSTER_LAB_MODE", mode);
        }
        if need.shares_with(Need::Local) {
            command.env(POSTGRES_VARIABLE, local::postgres::URL);
            command.env(KAFKA_VARIABLE, Lab::load(self.layout)?.kafka());
        }
        // For the kubectl that came with the cluster, where there is no other.
        let own = self.layout.run("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env(
            "PATH",
            std::env::join_paths(std::env::split_paths(&path).chain([own]))?,
        );
        if self.long {
            command.env("KVCLUSTER_LONG", "1");
        }
        shell::run_logged(&mut command, log)
    }
}

/// What a failed suite's log counts; at least one failure.
fn failed_counts(log: &Path) -> Counts {
    let text = std::fs::read(log).unwrap_or_default();
    let counts = report::parse(&String::from_utf8_lossy(&text)).unwrap_or_default();
    Counts {
        failed: counts.failed.max(1),
        ..counts
    }
}
