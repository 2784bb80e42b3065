//! Real input through REST: all of it, once, everywhere.

use anyhow::Result;
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::load::{Load, Progress};
use kvcluster_suite::unicode;

use crate::support::{SETTLE_LIMIT, empty_store};

const CONNECTIONS: usize = 32;

#[test]
fn every_line_arrives_once_everywhere() -> Result<()> {
    let rows = unicode::rows()?;
    let lab = empty_store()?;
    let before = check::decode_log(lab.kafka()?, &lab.names().log_topic())?;
    let load = Load {
        targets: lab.urls()?,
        connections: CONNECTIONS,
        row_limit: SETTLE_LIMIT,
    };
    let report = load.run(&rows, &Progress::default())?;
    println!("unicode: {}", report.line());
    assert_eq!(
        report.errors(),
        [],
        "nothing failed, so nothing may be refused"
    );

    let expected: Rows = rows.into_iter().collect();
    check::expect_everywhere(&lab, &expected)?;
    let after = check::decode_log(lab.kafka()?, &lab.names().log_topic())?;
    after.expect_whole()?;
    assert_eq!(after.puts() - before.puts(), i64::try_from(unicode::LINES)?);
    Ok(())
}
