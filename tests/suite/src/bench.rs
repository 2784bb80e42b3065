//! `bench slots`: the measured table from which the default of `slots` is chosen: throughput and latency of classic PUT over slots and
//! connections. `bench bootstrap`: how long a replica without state takes, see `bench/bootstrap.rs`. `bench restart`: how long a
//! restarted node takes until it answers reads itself, see `bench/restart.rs`.
//!
//! Each round brings up a store of its own for each number of slots, one after the other, so that a slow minute of the
//! machine falls on all of them; the table shows medians over the rounds. Every measurement is one JSON line.

mod bootstrap;
mod restart;
mod store;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::load::{Load, Progress};
use store::Store;

/// Numbers of slots that are compared.
const SLOTS: [u32; 6] = [4, 8, 16, 32, 64, 128];
/// Numbers of connections that are compared.
const CONNECTIONS: [usize; 5] = [1, 4, 16, 64, 256];
/// Rounds, unless `--rounds` says otherwise; odd, so that there is a median.
const ROUNDS: usize = 3;
/// Keys of a bootstrap, unless `--keys` says otherwise.
const KEYS: usize = 1_000_000;
/// How often each key of a bootstrap was written, unless `--writes-per-key` says otherwise: once, and a log in which a quarter of
/// the records is still alive.
const WRITES_PER_KEY: [usize; 2] = [1, 4];
/// Restarts by each signal, unless `--rounds` says otherwise.
const RESTARTS: usize = 20;
/// Writes of one measurement, by its connections: a few seconds each.
const WRITES_PER_CONNECTION: usize = 200;
/// Least and most writes of one measurement.
const WRITES: std::ops::RangeInclusive<usize> = 1000..=10_000;
/// Writes before the first measurement of a store: connections are made, PostgreSQL's plans are cached.
const WARM_UP_WRITES: usize = 500;
/// Bytes of a value.
const VALUE_BYTES: usize = 100;
/// Longest that one write may be tried.
const ROW_LIMIT: Duration = Duration::from_mins(1);

/// One measurement, one line of the results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// The code that was measured.
    pub commit: String,
    /// The round, from 0.
    pub round: usize,
    /// Slots of the store.
    pub slots: u32,
    /// Connections of the load.
    pub connections: usize,
    /// Acknowledged writes.
    pub writes: usize,
    /// Attempts that were not acknowledged.
    pub errors: usize,
    /// Acknowledged writes per second.
    pub per_second: f64,
    /// Median time of a write, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the same.
    pub p99_ms: f64,
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    what: What,
    rounds: Option<usize>,
    keys: usize,
    writes_per_key: Vec<usize>,
    results: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Slots,
    Bootstrap,
    Restart,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        what: What::Slots,
        rounds: None,
        keys: KEYS,
        writes_per_key: WRITES_PER_KEY.to_vec(),
        results: None,
    };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--rounds" => {
                options.rounds = Some(value()?.parse().context("--rounds takes a number")?);
            }
            "--keys" => options.keys = value()?.parse().context("--keys takes a number")?,
            "--writes-per-key" => {
                let numbers: Result<_, _> = value()?.split(',').map(str::parse).collect();
                options.writes_per_key = numbers.context("--writes-per-key takes numbers: 1,4")?;
            }
            "--results" => options.results = Some(value()?.into()),
            "slots" => options.what = What::Slots,
            "bootstrap" => options.what = What::Bootstrap,
            "restart" => options.what = What::Restart,
            _ => bail!(
                "unknown argument {argument:?}; usage: bench [slots | bootstrap [--keys N] [--writes-per-key N,N] | restart] [--rounds N] [--results FILE]"
            ),
        }
    }
    ensure!(options.rounds != Some(0), "--rounds must be at least 1");
    ensure!(options.keys > 0, "--keys must be at least 1");
    let mut before = 0;
    for writes in &options.writes_per_key {
        ensure!(*writes > before, "--writes-per-key must grow, from 1");
        before = *writes;
    }
    Ok(options)
}

/// Measures everything, appends the lines to the results and prints the table.
pub fn run(arguments: impl Iterator<Item = String>) -> Result<()> {
    let options = parse(arguments)?;
    let rounds = |usual| options.rounds.unwrap_or(usual);
    match options.what {
        What::Slots => slots(rounds(ROUNDS), &options.results("slots")),
        What::Bootstrap => {
            let (keys, writes) = (options.keys, &options.writes_per_key);
            bootstrap::run(keys, writes, rounds(ROUNDS), &options.results("bootstrap"))
        }
        What::Restart => restart::run(rounds(RESTARTS), &options.results("restart")),
    }
}

impl Options {
    fn results(&self, name: &str) -> PathBuf {
        let usual = || {
            let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../results"));
            folder.join(format!("{name}.jsonl"))
        };
        self.results.clone().unwrap_or_else(usual)
    }
}

fn slots(rounds: usize, results: &PathBuf) -> Result<()> {
    let commit = store::commit()?;
    let mut all = Vec::new();
    for round in 0..rounds {
        for slots in SLOTS {
            let store = Store::start(slots, round)?;
            write(&store, WARM_UP_WRITES, 16, "warm")?;
            for connections in CONNECTIONS {
                let measurement = measure(&store, &commit, (round, slots, connections))?;
                eprintln!(
                    "round {round}: {slots} slots, {connections} connections: {:.0}/s, p50 {:.1} ms, p99 {:.1} ms, {} errors",
                    measurement.per_second,
                    measurement.p50_ms,
                    measurement.p99_ms,
                    measurement.errors
                );
                append(results, &measurement)?;
                all.push(measurement);
            }
            store.stop()?;
        }
    }
    println!("{}", table::markdown(&all, &SLOTS, &CONNECTIONS));
    Ok(())
}

fn measure(
    store: &Store,
    commit: &str,
    (round, slots, connections): (usize, u32, usize),
) -> Result<Measurement> {
    let writes = (connections * WRITES_PER_CONNECTION).clamp(*WRITES.start(), *WRITES.end());
    let report = write(store, writes, connections, &format!("c{connections}"))?;
    Ok(Measurement {
        commit: commit.to_owned(),
        round,
        slots,
        connections,
        writes: report.acknowledged(),
        errors: report.attempts.len() - report.acknowledged(),
        per_second: report.per_second(),
        p50_ms: report.percentile(50).as_secs_f64() * 1e3,
        p99_ms: report.percentile(99).as_secs_f64() * 1e3,
    })
}

fn write(
    store: &Store,
    count: usize,
    connections: usize,
    prefix: &str,
) -> Result<crate::load::Report> {
    let row = |number| {
        (
            format!("{prefix}-{number}"),
            format!("{number:0>VALUE_BYTES$}"),
        )
    };
    let rows: Vec<_> = (0..count).map(row).collect();
    let load = Load {
        targets: store.urls(),
        connections,
        row_limit: ROW_LIMIT,
    };
    load.run(&rows, &Progress::default())
}

fn append(path: &PathBuf, measurement: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "{}", serde_json::to_string(measurement)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options> {
        parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn arguments() {
        let options = parsed(&["slots", "--rounds", "5", "--results", "/r"]).expect("all known");
        assert_eq!(
            options,
            Options {
                what: What::Slots,
                rounds: Some(5),
                keys: KEYS,
                writes_per_key: WRITES_PER_KEY.to_vec(),
                results: Some("/r".into())
            }
        );
        let options = parsed(&["bootstrap", "--keys", "9"]).expect("all known");
        assert_eq!((options.what, options.keys), (What::Bootstrap, 9));
        assert!(
            options
                .results("bootstrap")
                .ends_with("results/bootstrap.jsonl")
        );
        let options = parsed(&["bootstrap", "--writes-per-key", "1,3,8"]).expect("all known");
        assert_eq!(options.writes_per_key, [1, 3, 8]);
        for wrong in ["0", "2,2", "4,1", "x", ""] {
            assert!(
                parsed(&["bootstrap", "--writes-per-key", wrong]).is_err(),
                "{wrong}"
            );
        }
        assert_eq!(parsed(&["restart"]).expect("known").what, What::Restart);
        assert_eq!(parsed(&[]).expect("defaults").rounds, None);
        assert!(parsed(&["--rounds"]).is_err() && parsed(&["--rounds", "0"]).is_err());
        assert!(parsed(&["bootstrap", "--keys", "0"]).is_err());
        assert!(parsed(&["--loud"]).is_err());
    }
}
