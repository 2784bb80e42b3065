//! What a node keeps of a slot that is not assigned to it any more.

use std::time::Duration;

use kvcluster_crds::{Offset, SlotAssignment, SlotId};
use kvcluster_suite::history::Action;
use tokio::time::sleep;

use crate::clients::{Client, KEYS};
use crate::node::node_id;
use crate::world::{NODES, World};

/// Longer than rows stay that may go, several times.
const LONG: Duration = Duration::from_secs(4);
/// Until every slot has a leader.
const ELECTION: Duration = Duration::from_secs(3);
const SLOT: SlotId = SlotId(0);
/// The node that is to get the slot alone, and cannot store it.
const LATE: usize = 2;

fn stored(world: &World, node: usize) -> Option<Offset> {
    let slots = world.services.schemas[node].tables().slots;
    slots.get(&SLOT).map(|at| at.next_offset)
}

fn assign(world: &World, voters: &[usize]) {
    let voters: Vec<_> = voters.iter().map(|node| node_id(*node)).collect();
    world.assign(|assignment| {
        assignment.slots[SLOT.index()] = SlotAssignment {
            preferred_leader: voters[0],
            voters,
            learners: Vec::new(),
        };
    });
}

/// Runs it; what is wrong.
pub(crate) async fn a_voter_that_cannot_store(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    sleep(ELECTION).await;
    let rng = fastrand::Rng::with_seed(seed);
    let mut client = Client::new(&world.history, &world.services.network, &world.seen, rng);
    for key in KEYS {
        let (key, value) = (key.to_owned(), "v".to_owned());
        client.ask(0, Action::Put { key, value }).await;
    }
    assign(&world, &[0, 1]);
    sleep(LONG).await;
    if stored(&world, LATE).is_some() {
        return Err("the rows stay although both voters have them durably".to_owned());
    }
    let end = stored(&world, 0).ok_or("a voter has no rows")?;
    world.services.broker.trim(SLOT, Offset(end.0 - 1));
    world.services.schemas[LATE].set_away(true);
    assign(&world, &[LATE]);
    // Their processes know nothing of what they served.
    for node in (0..NODES).filter(|node| *node != LATE) {
        world.kill(node);
        world.start(node);
    }
    sleep(LONG).await;
    if (stored(&world, 0), stored(&world, 1)) == (None, None) {
        return Err("nobody has the slot any more".to_owned());
    }
    world.services.schemas[LATE].set_away(false);
    sleep(LONG + LONG).await;
    if stored(&world, LATE).is_none_or(|at| at < end) {
        return Err(format!("the voter has {:?}", stored(&world, LATE)));
    }
    if let Some(node) = (0..NODES).find(|node| *node != LATE && stored(&world, *node).is_some()) {
        return Err(format!("node {node} keeps what the voter has durably"));
    }
    Ok(())
}

#[test]
fn rows_stay_until_every_voter_has_them_durably() {
    for seed in 0..5 {
        let ended = crate::runtime().block_on(a_voter_that_cannot_store(seed));
        assert_eq!(ended, Ok(()), "seed {seed}");
    }
}
