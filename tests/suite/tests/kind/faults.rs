//! A node, Kafka, PostgreSQL and the operator are killed under load, one after the other. What was acknowledged stays, once;
//! what was refused never happened; the store recovers by itself.

use anyhow::{Context, Result};
use kvcluster_crds::NodeId;
use kvcluster_suite::lab::{CLUSTER, NAMESPACE};
use kvcluster_suite::load::{Load, Step};
use kvcluster_suite::{check, election, poll, unicode};

use crate::support::{
    OPERATOR, SERVICES, SETTLE_LIMIT, empty_demo, expect_everywhere, operator_pod, settled,
};

const CONNECTIONS: usize = 32;

#[test]
fn a_killed_part_loses_nothing_and_doubles_nothing() -> Result<()> {
    let rows = unicode::rows()?;
    let (lab, kubectl) = empty_demo()?;
    let victim = election::busiest(&settled(&lab, &kubectl, None)?);
    let topic = lab.names().log_topic();
    let before = check::decode_log(lab.kafka()?, &topic)?;
    let killed = [
        (20, NAMESPACE, lab.names().pod(NodeId(victim))),
        (40, SERVICES, "kafka-0".to_owned()),
        (60, SERVICES, "postgres-0".to_owned()),
        (80, OPERATOR, operator_pod(&kubectl)?),
    ];
    let restarts = |(_, namespace, pod): &(usize, &str, String)| kubectl.restarts(namespace, pod);
    let restarts_before = killed.iter().map(restarts).collect::<Result<Vec<_>>>()?;
    let kubectl = &kubectl;
    let steps: Vec<Step<'_>> = killed
        .iter()
        .map(|(percent, namespace, pod)| {
            Step::new(*percent, move || {
                println!("faults: SIGKILL of {namespace}/{pod} at {percent} % of the load");
                kubectl.kill_container(namespace, pod)
            })
        })
        .collect();
    let load = Load {
        targets: vec![lab.service()?.to_owned()],
        connections: CONNECTIONS,
        row_limit: SETTLE_LIMIT,
    };
    let report = load.run_with(&rows, &steps)?;
    println!("faults: {}", report.line());

    for (part, before) in killed.iter().zip(restarts_before) {
        let what = format!("the restart of {}", part.2);
        poll::until(SETTLE_LIMIT, &what, || {
            Ok((restarts(part)? > before).then_some(()))
        })?;
    }
    settled(&lab, kubectl, None)?;
    kubectl.condition(NAMESPACE, CLUSTER, ("Ready", "True"), SETTLE_LIMIT)?;
    let seen = check::scan(lab.service()?)?;
    check::expect_answers_kept(&seen, &rows, &report)?;
    expect_everywhere(&lab, &seen)?;
    let after = check::decode_log(lab.kafka()?, &topic)?;
    after.expect_whole()?;
    let puts = usize::try_from(after.puts() - before.puts()).context("the log only grows")?;
    let possible = report.acknowledged()..=report.acknowledged() + report.unknown();
    assert!(
        possible.contains(&puts),
        "{puts} put effects are in the log, not {possible:?}"
    );
    Ok(())
}
