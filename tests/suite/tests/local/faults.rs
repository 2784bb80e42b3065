//! Parts of the store are killed under load, one after the other. What was acknowledged stays, once; what was refused never
//! happened; errors say which.

use std::time::Duration;

use anyhow::Result;
use kvcluster_suite::check;
use kvcluster_suite::lab;
use kvcluster_suite::load::{Load, Step};
use kvcluster_suite::{election, unicode};

use crate::support::{SETTLE_LIMIT, empty_store};

const CONNECTIONS: usize = 32;
/// Longest time until the load has come as far as the next fault; it stands still while Kafka is away.
const STEP_LIMIT: Duration = Duration::from_mins(2);

#[test]
fn a_killed_part_loses_nothing_and_doubles_nothing() -> Result<()> {
    let rows = unicode::rows()?;
    let lab = empty_store()?;
    let leaders = election::settled(&lab, None, SETTLE_LIMIT)?;
    let node = format!("node-{}", election::busiest(&leaders));
    let topic = lab.names().log_topic();
    let before = check::decode_log(lab.kafka()?, &topic)?;
    let steps = [
        Step::new(15, || lab::kill(&node)),
        Step::new(30, || lab::start(&node)),
        Step::new(45, || lab::kill("kafka-0")),
        Step::new(45, || lab::start("kafka-0")),
        Step::new(60, || lab::kill("postgres")),
        Step::new(75, || lab::start("postgres")),
    ];
    let load = Load {
        targets: lab.urls()?,
        connections: CONNECTIONS,
        row_limit: STEP_LIMIT,
    };
    let report = load.run_with(&rows, &steps)?;
    println!("faults: {}", report.line());

    election::settled(&lab, None, SETTLE_LIMIT)?;
    let seen = check::scan(lab.service()?)?;
    check::expect_answers_kept(&seen, &rows, &report)?;
    check::expect_everywhere(&lab, &seen)?;
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
