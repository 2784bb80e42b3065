//! A store that nobody uses and nobody changes: for a minute nothing is written, to Kubernetes, Kafka or PostgreSQL.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use kvcluster_suite::check;
use kvcluster_suite::kube::Kubectl;
use kvcluster_suite::lab::Lab;
use kvcluster_suite::poll;

use crate::audit;
use crate::support::{SETTLE_LIMIT, demo, settled};

/// How long nothing may happen.
const QUIET: Duration = Duration::from_mins(1);
/// The same in a long run.
const QUIET_LONG: Duration = Duration::from_mins(10);

/// What there is to see of writes to Kafka and PostgreSQL.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    /// Ends of the log's partitions and of the assignment's. Heartbeats are written at all times: they are what the topic is for.
    log: Vec<i64>,
    assignments: Vec<i64>,
    /// Rows inserted, updated and deleted in all schemas of stores, ever.
    rows: String,
    /// Objects of PostgreSQL that belong to stores.
    relations: String,
}

#[test]
fn nothing_is_written_when_there_is_nothing_to_do() -> Result<()> {
    let (lab, kubectl) = demo()?;
    alone(&kubectl)?;
    settled(&lab, &kubectl, None)?;
    check::expect_schemas(&lab, &check::scan(lab.service()?)?)?;
    let before = written(&lab)?;
    let requests = audit::requests(&lab)?.len();
    let quiet = if std::env::var_os("KVCLUSTER_LONG").is_some() {
        QUIET_LONG
    } else {
        QUIET
    };
    thread::sleep(quiet);
    let after = audit::requests(&lab)?;
    let (alive, meanwhile): (Vec<_>, Vec<_>) = after[requests..]
        .iter()
        .partition(|request| request.is_sign_of_life());
    let writes: Vec<_> = meanwhile
        .iter()
        .filter(|request| request.is_write())
        .collect();
    let shown: Vec<_> = writes
        .iter()
        .map(|request| (&request.right, &request.object))
        .collect();
    ensure!(
        writes.is_empty(),
        "{} writes to Kubernetes: {shown:?}",
        writes.len()
    );
    ensure!(!alive.is_empty(), "no operator renews its Lease");
    let now = written(&lab)?;
    ensure!(now == before, "written: {now:?}, before: {before:?}");
    println!(
        "quiet: in {} s no writes, {} reads of Kubernetes and {} renewals of the Lease",
        quiet.as_secs(),
        meanwhile.len(),
        alive.len()
    );
    Ok(())
}

/// Waits until the namespaces of other tests are gone, and with them the stores whose deletion goes on.
fn alone(kubectl: &Kubectl) -> Result<()> {
    poll::until(SETTLE_LIMIT, "the end of what other tests made", || {
        let names = kubectl.run(&["get", "namespaces", "-o", "name"])?;
        let others: Vec<&str> = names
            .lines()
            .filter(|name| name.contains("/suite-"))
            .collect();
        ensure!(others.is_empty(), "{others:?} are there");
        Ok(Some(()))
    })
}

fn written(lab: &Lab) -> Result<Written> {
    let ends = |topic: &str| -> Result<Vec<i64>> {
        let log = check::decode_log(lab.kafka()?, topic)?;
        Ok(log
            .partitions
            .iter()
            .map(|partition| partition.end)
            .collect())
    };
    let names = lab.names();
    Ok(Written {
        log: ends(&names.log_topic())?,
        assignments: ends(&names.assignment_topic())?,
        rows: check::query(
            lab.postgres()?,
            "SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del) FROM pg_stat_all_tables WHERE starts_with(schemaname, 'kv_')",
        )?,
        relations: check::query(
            lab.postgres()?,
            "SELECT count(*), max(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE starts_with(nspname, 'kv_')",
        )?,
    })
}
