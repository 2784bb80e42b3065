//! What the tests of this target share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use kvcluster_suite::lab::Lab;
use kvcluster_suite::{check, election};

/// Longest time until a store whose parts all run is whole again: Kafka's restart after a crash takes 6 to 12 s.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(90);

/// The lab with a store that is whole and empty.
pub(crate) fn empty_store() -> Result<Lab> {
    let lab = Lab::local()?;
    for node in lab.nodes.iter().filter(|node| node.pid.is_none()) {
        kvcluster_suite::lab::start(&format!("node-{}", node.id))?;
    }
    election::settled(&lab, None, SETTLE_LIMIT)?;
    check::empty(lab.service()?)?;
    Ok(lab)
}

/// Runs clients, each on a thread of its own until the flag that it is given is set, while `act` acts. What `act` gave, and
/// what each client saw.
pub(crate) fn while_clients<A, S: Send>(
    clients: usize,
    client: impl Fn(usize, &AtomicBool) -> Result<S> + Sync,
    act: impl FnOnce() -> Result<A>,
) -> Result<(A, Vec<S>)> {
    let stop = AtomicBool::new(false);
    let (acted, ended) = thread::scope(|scope| {
        let (stop, client) = (&stop, &client);
        let start = |number| scope.spawn(move || client(number, stop));
        let running: Vec<_> = (0..clients).map(start).collect();
        let acted = act();
        stop.store(true, Ordering::Relaxed);
        let ended: Vec<_> = running
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        (acted, ended)
    });
    let acted = acted?;
    let seen = ended
        .into_iter()
        .map(|ended| ended.ok().context("a client panicked")?);
    Ok((acted, seen.collect::<Result<_>>()?))
}
