//! A leader is killed: another replica leads by a claim in the log, soon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kvcluster_suite::lab::Lab;
use kvcluster_suite::load::{Outcome, judge, put_target};
use kvcluster_suite::{check, election, http, lab, poll};

use crate::support::{SETTLE_LIMIT, empty_store};

/// Leaders killed one after the other; an odd number has a median.
const ROUNDS: usize = 3;
/// The goal for the median: suspicion after 600 ms, claim, first record.
const MEDIAN_GOAL: Duration = Duration::from_secs(1);
/// Longest that one may take, on two cores that run everything.
const LONGEST: Duration = Duration::from_secs(10);

#[test]
fn a_killed_leader_is_replaced_by_a_claim() -> Result<()> {
    let lab = empty_store()?;
    let topic = lab.names().log_topic();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let claims = check::decode_log(lab.kafka()?, &topic)?.claims();
        let leaders = election::settled(&lab, None, SETTLE_LIMIT)?;
        let victim = election::busiest(&leaders);
        let led = leaders.values().filter(|leader| **leader == victim).count();
        let key = election::key_led_by(&format!("round{round}"), victim, &leaders)?;
        let took = kill_and_write(&lab, victim, &key)?;
        println!(
            "election: first acknowledged write {} ms after node {victim} was killed",
            took.as_millis()
        );
        times.push(took);

        let others = election::settled(&lab, Some(victim), SETTLE_LIMIT)?;
        assert_eq!(
            others.len(),
            leaders.len(),
            "every slot is led without node {victim}"
        );
        let after = check::decode_log(lab.kafka()?, &topic)?.claims();
        assert!(
            after - claims >= i64::try_from(led)?,
            "each of {led} slots took a claim"
        );
        lab::start(&format!("node-{victim}"))?;
    }
    election::settled(&lab, None, SETTLE_LIMIT)?;
    times.sort_unstable();
    assert!(
        times[ROUNDS / 2] <= MEDIAN_GOAL,
        "the median of {times:?} is over {MEDIAN_GOAL:?}"
    );
    Ok(())
}

/// Kills a node and writes through another one until a write is acknowledged; the time from the kill.
fn kill_and_write(lab: &Lab, victim: u32, key: &str) -> Result<Duration> {
    let other = lab
        .nodes
        .iter()
        .find(|node| node.id != victim)
        .context("there is another node")?;
    let base = other.url.as_deref().context("it has a URL")?;
    lab::kill(&format!("node-{victim}"))?;
    let begin = Instant::now();
    poll::until(LONGEST, "a write that is acknowledged", || {
        let outcome = judge(http::once(base, "PUT", &put_target(key, "1")));
        Ok((outcome == Outcome::Acknowledged).then_some(()))
    })?;
    Ok(begin.elapsed())
}
