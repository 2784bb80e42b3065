//! Parts of the store are killed under load, one after the other. What was acknowledged stays, once; what was refused never
//! happened; errors say which.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvcluster_suite::check;
use kvcluster_suite::lab;
use kvcluster_suite::load::{Load, Progress, Report};
use kvcluster_suite::{election, poll, unicode};

use crate::support::{SETTLE_LIMIT, empty_store, expect_everywhere};

const CONNECTIONS: usize = 32;
/// Longest time until the load has come as far as the next fault; it stands still while Kafka is away.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// At which percentage of the load what happens.
enum Fault {
    Kill(String),
    Start(String),
}

#[test]
fn a_killed_part_loses_nothing_and_doubles_nothing() -> Result<()> {
    let rows = unicode::rows()?;
    let lab = empty_store()?;
    let leaders = election::settled(&lab, None, SETTLE_LIMIT)?;
    let node = format!("node-{}", election::busiest(&leaders));
    let topic = lab.names().log_topic();
    let before = check::decode_log(lab.kafka()?, &topic)?;
    let faults = [
        (15, Fault::Kill(node.clone())),
        (30, Fault::Start(node)),
        (45, Fault::Kill("kafka-0".to_owned())),
        (45, Fault::Start("kafka-0".to_owned())),
        (60, Fault::Kill("postgres".to_owned())),
        (75, Fault::Start("postgres".to_owned())),
    ];
    let load = Load {
        targets: lab.urls()?,
        connections: CONNECTIONS,
        row_limit: STEP_LIMIT,
    };
    let report = run_with(&load, &rows, &faults)?;
    println!("faults: {}", report.line());

    election::settled(&lab, None, SETTLE_LIMIT)?;
    let seen = check::scan(lab.service()?)?;
    check::expect_answers_kept(&seen, &rows, &report)?;
    expect_everywhere(&lab, &seen)?;
    let after = check::decode_log(lab.kafka()?, &topic)?;
    after.expect_whole()?;
    let puts = usize::try_from(after.puts() - before.puts())?;
    let possible = report.acknowledged()..=report.acknowledged() + report.unknown();
    assert!(
        possible.contains(&puts),
        "{puts} put effects are in the log, not {possible:?}"
    );
    Ok(())
}

/// Runs the load and lets each fault happen when the load has come that far.
fn run_with(load: &Load, rows: &[(String, String)], faults: &[(usize, Fault)]) -> Result<Report> {
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| load.run(rows, &progress));
        for (percent, fault) in faults {
            let wanted = rows.len() * percent / 100;
            poll::until(STEP_LIMIT, &format!("{percent} % of the load"), || {
                ensure!(!running.is_finished(), "the load has ended");
                Ok((progress.get() >= wanted).then_some(()))
            })?;
            match fault {
                Fault::Kill(part) => lab::kill(part)?,
                Fault::Start(part) => lab::start(part)?,
            }
        }
        running.join().ok().context("the load panicked")?
    })
}
