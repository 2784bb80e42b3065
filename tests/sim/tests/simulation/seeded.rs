//! Each guard of the protocol is taken away, and the simulation must notice within its seeds.

use kvcluster_node::seeded::{self, Bug};

use super::try_run;

const SEEDS: u64 = 2_000;

/// One test for all: the switch is the whole process's.
#[test]
fn seeded_bugs_are_noticed() {
    let mut missed = Vec::new();
    for bug in seeded::ALL.into_iter().chain(seeded::RETRIES) {
        seeded::set(Some(bug));
        match (0..SEEDS).find_map(|seed| Some((seed, try_run(seed).err()?))) {
            Some((seed, wrong)) => println!("{bug:?}: seed {seed}: {wrong}"),
            None => missed.push(bug),
        }
    }
    seeded::set(None);
    missed.retain(|bug| !BEYOND.contains(bug));
    assert_eq!(missed, [], "not noticed within {SEEDS} seeds");
}

/// The check of the product's program looks for these bytes.
#[test]
fn seeded_bugs_leave_a_mark() {
    let own = std::env::current_exe().and_then(std::fs::read);
    let (own, mark) = (own.expect("this program"), seeded::MARK.as_bytes());
    assert!(own.windows(mark.len()).any(|bytes| bytes == mark));
}

/// What this simulation seldom sees or never, and the exploration of all orders must.
const BEYOND: [Bug; 3] = [
    // All its nodes claim with the same lease.
    Bug::OwnLease,
    // A stale read needs clocks that differ by more than what two messages take, and a read in that very moment.
    Bug::LeaseWithoutMargin,
    // A claimant that reads its own claim a lease later than its rival does.
    Bug::LeaseFromReading,
];
