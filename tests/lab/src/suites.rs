//! `cargo lab test`: every suite, what it needs, and its time against its budget.

pub mod report;
pub mod structure;
pub mod table;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::args::LocalOptions;
use crate::build::go::HELM;
use crate::cache::Layout;
use crate::cluster::Cluster;
use crate::local::{self, parts::Lab};
use crate::machine::{is_root, packages};
use crate::progress::Progress;
use crate::suites::report::{Counts, Line};
use crate::suites::table::{Need, Suite, Work};
use crate::{build, down, shell, up};

/// A suite that takes so many times its budget hangs.
const HANGING_FACTOR: u32 = 3;

/// Variables that name the services to tests that use one of them alone.
const POSTGRES_VARIABLE: &str = "KVCLUSTER_TEST_POSTGRES_URL";
const KAFKA_VARIABLE: &str = "KVCLUSTER_TEST_KAFKA";

/// Runs the suites and prints the summary; `false` if anything failed.
pub fn run(layout: &Layout, progress: &Progress, long: bool, only: &[String]) -> Result<bool> {
    let suites = table::select(only)?;
    check_what_runs(&Lab::load(layout)?, &suites)?;
    let mut runner = Runner {
        layout,
        progress,
        long,
        brought: Vec::new(),
    };
    let mut lines = Vec::new();
    for (index, suite) in suites.iter().enumerate() {
        let bringing = runner.bring(suite.need);
        let is_up = bringing.as_ref().is_none_or(|line| line.counts.failed == 0);
        lines.extend(bringing);
        lines.push(if is_up {
            runner.suite(suite)
        } else {
            Line::failed(suite)
        });
        let later: Vec<Need> = suites
            .iter()
            .skip(index + 1)
            .map(|suite| suite.need)
            .collect();
        if let Err(error) = runner.take_down(&later) {
            eprintln!(
                "what {} ran against does not go away: {error:#}",
                suite.name
            );
            lines.push(Line::failed_down(suite));
        }
    }
    print!("{}", report::render(&lines));
    Ok(report::total(&lines).failed == 0)
}

/// Runs the measuring program, with Kafka and PostgreSQL for its time if they do not run.
pub fn bench(layout: &Layout, progress: &Progress, arguments: &[String]) -> Result<bool> {
    let mut runner = Runner {
        layout,
        progress,
        long: false,
        brought: Vec::new(),
    };
    if runner
        .bring(Need::Services)
        .is_some_and(|line| line.counts.failed > 0)
    {
        bail!("there is nothing to measure without Kafka and PostgreSQL");
    }
    let program = build::own::programs(layout, progress)?.join("bench");
    let status = Command::new(&program)
        .args(arguments)
        .current_dir(layout.source(""))
        .status();
    let status = status.with_context(|| format!("cannot run {}", program.display()));
    runner.take_down(&[])?;
    Ok(status?.success())
}

/// Refuses at once, and not after half an hour, where a store that somebody else started has the wrong size for a suite.
fn check_what_runs(lab: &Lab, suites: &[Suite]) -> Result<()> {
    let running = lab.count("kafka-");
    let mut suites = suites.iter().filter(|_| lab.is_running());
    if let Some(suite) = suites
        .find(|suite| suite.need.mode() == Need::Local.mode() && suite.need.brokers() != running)
    {
        bail!(
            "local runs with {running} Kafka brokers, and the suite {} wants {}: `cargo lab down` first, or choose other suites with --only",
            suite.name,
            suite.need.brokers()
        );
    }
    Ok(())
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
        let started = Instant::now();
        // Also where it runs already: the store in it may be older than the source.
        let result = match need {
            Need::Kind => {
                if Cluster::running(self.layout).is_none() {
                    self.brought.push(need);
                }
                up::run(self.layout, self.progress)
            }
            _ => self.bring_local(need),
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

    fn bring_local(&mut self, need: Need) -> Result<()> {
        let mut lab = Lab::load(self.layout)?;
        if lab.is_leftover() {
            // Of any size, with the data of anything that was done to it: a suite begins with its own.
            local::stop(self.layout, self.progress)?;
            lab = Lab::default();
        }
        if !lab.is_running() {
            self.brought.push(need);
        }
        let options = LocalOptions {
            brokers: need.brokers(),
            // Faults fill them. Who may not mount file systems gets a suite that says so.
            small_disks: need == Need::ThreeBrokers && is_root(),
            ..lab.options(need == Need::Services)
        };
        local::up(self.layout, self.progress, &options)
    }

    fn take_down(&mut self, later: &[Need]) -> Result<()> {
        for need in std::mem::take(&mut self.brought) {
            if later.iter().any(|other| need.shares_with(*other)) {
                self.brought.push(need);
                continue;
            }
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
                let cause = format!("{error:#}");
                let cause = cause.lines().next().unwrap_or_default();
                eprintln!("{cause}\n{}", report::failures(&log));
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
            self.command(words, suite, log)?;
            commands_passed += 1;
        }
        let text = std::fs::read(log)?;
        let parsed = report::parse(&String::from_utf8_lossy(&text));
        Ok(parsed.unwrap_or(Counts {
            passed: commands_passed,
            failed: 0,
        }))
    }

    fn command(&self, words: &[&str], suite: &Suite, log: &Path) -> Result<()> {
        let helm = self.layout.artifact("helm", &HELM.key()).join("helm");
        if words
            .iter()
            .any(|word| [table::HELM, "charts"].contains(word))
        {
            HELM.built(self.layout, self.progress)?;
        }
        let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        for word in words.iter_mut().filter(|word| *word == table::HELM) {
            *word = helm.display().to_string();
        }
        if std::env::var_os("CI").is_some() {
            // Nobody is there to end what hangs.
            let seconds = (suite.budget * HANGING_FACTOR).as_secs().to_string();
            words.splice(
                0..0,
                ["timeout".to_owned(), "--kill-after=30".to_owned(), seconds],
            );
        }
        let mut command = shell::command(&words);
        command
            .current_dir(self.layout.source(""))
            .stdin(Stdio::null());
        command
            .env("KVCLUSTER_HELM", &helm)
            .env("CARGO_TERM_COLOR", "never");
        if let Some(mode) = suite.need.mode() {
            command.env("KVCLUSTER_LAB_MODE", mode);
        }
        if suite.need.mode() == Need::Local.mode() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::parts::Part;

    #[test]
    fn a_store_of_another_size_is_refused_before_the_first_suite() {
        let suites = table::select(&[]).expect("all");
        let mut sleeper = Part {
            name: "kafka-0".to_owned(),
            argv: vec!["sleep".to_owned(), "600".to_owned()],
            cwd: "/".into(),
            log: "/dev/null".into(),
            ..Part::default()
        };
        let leftover = Lab {
            parts: vec![sleeper.clone()],
        };
        assert!(check_what_runs(&leftover, &suites).is_ok(), "nothing runs");
        sleeper.start().expect("sleep starts");
        let lab = Lab {
            parts: vec![sleeper],
        };
        let refused = check_what_runs(&lab, &suites).map_err(|error| error.to_string());
        let one = table::select(&["local".to_owned()]).expect("it exists");
        let allowed = check_what_runs(&lab, &one);
        lab.parts[0].signal("KILL").expect("it runs");
        assert!(
            refused
                .expect_err("one suite wants three brokers")
                .contains("histories wants 3")
        );
        assert!(allowed.is_ok());
    }
}
