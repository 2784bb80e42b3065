//! Real input through the Service: all of it, once, in every schema, and in the log.

use anyhow::Result;
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::load::{Load, Progress};
use kvcluster_suite::unicode;

use crate::support::{SETTLE_LIMIT, empty_demo, expect_everywhere};

const CONNECTIONS: usize = 32;

#[test]
fn every_line_arrives_once_everywhere() -> Result<()> {
    let rows = unicode::rows()?;
    let (lab, _) = empty_demo()?;
    let topic = lab.names().log_topic();
    let before = check::decode_log(lab.kafka()?, &topic)?;
    let load = Load {
        targets: vec![lab.service()?.to_owned()],
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
    expect_everywhere(&lab, &expected)?;
    let after = check::decode_log(lab.kafka()?, &topic)?;
    after.expect_whole()?;
    assert_eq!(after.puts() - before.puts(), i64::try_from(unicode::LINES)?);
    Ok(())
}
