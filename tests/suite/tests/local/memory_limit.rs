//! PostgreSQL stays away: writes go on in memory up to the stated limit, then 429; nothing is lost when it returns.

use anyhow::{Result, bail};
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::http::Connection;
use kvcluster_suite::lab;
use kvcluster_suite::load::{Outcome, judge, put_target};
use kvcluster_suite::{election, poll};

use crate::support::{SETTLE_LIMIT, empty_store};

/// Large values, so that the limit is met after few writes.
const VALUE_BYTES: usize = 512 * 1024;

#[test]
fn writes_go_on_up_to_the_limit_and_then_get_429() -> Result<()> {
    let lab = empty_store()?;
    let limit = usize::try_from(lab.nodes[0].status()?.unflushed_bytes_max)?;
    lab::kill("postgres")?;
    let written = write_until_refused(lab.service()?, limit);
    lab::start("postgres")?;
    let written = written?;
    let bytes: usize = written.values().map(String::len).sum();
    println!(
        "memory limit: {bytes} bytes were acknowledged with PostgreSQL away, the limit is {limit}"
    );
    // Every replica holds every value, and what is being written when the limit is met still goes in.
    assert!(
        (limit / 2..=limit + 8 * VALUE_BYTES).contains(&bytes),
        "{bytes} against {limit}"
    );

    poll::until(SETTLE_LIMIT, "a write that is taken again", || {
        let answer = Connection::open(lab.service()?)?.request("PUT", "/key/after?value=1", &[]);
        Ok((judge(answer) == Outcome::Acknowledged).then_some(()))
    })?;
    // One node takes writes again as soon as it has its own connection.
    election::settled(&lab, None, SETTLE_LIMIT)?;
    let mut expected = written;
    expected.insert("after".to_owned(), "1".to_owned());
    check::expect_everywhere(&lab, &expected)?;
    poll::until_equal(check::FLUSH_LIMIT, "an empty overlay", &0, || {
        Ok(lab.nodes[0].status()?.unflushed_bytes)
    })?;
    check::empty(lab.service()?)
}

/// Writes one value after the other until one is refused with 429; all that were acknowledged.
fn write_until_refused(base: &str, limit: usize) -> Result<Rows> {
    let mut connection = Connection::open(base)?;
    let mut written = Rows::new();
    for number in 0..=2 * limit / VALUE_BYTES {
        let (key, value) = (
            format!("big-{number}"),
            format!("{number:08}").repeat(VALUE_BYTES / 8),
        );
        match judge(connection.request("PUT", &put_target(&key, &value), &[])) {
            Outcome::Acknowledged => drop(written.insert(key, value)),
            Outcome::None(why) if why.starts_with("429 ") => return Ok(written),
            other => bail!("write {number} with PostgreSQL away: {other:?}"),
        }
        if !connection.is_usable() {
            connection = Connection::open(base)?;
        }
    }
    bail!("no 429 after twice the limit of {limit} bytes")
}
