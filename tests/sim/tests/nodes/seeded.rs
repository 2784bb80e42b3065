//! Guards are taken away, and the simulation of whole nodes must notice.

use kvcluster_node::seeded::{self, Bug};

use crate::moves::a_voter_that_cannot_store;
use crate::try_run;

/// Most seeds for one mistake.
const SEEDS_MAX: u64 = 600;

/// Mistakes that whole nodes show within the seeds. The others take more exact timing than chance gives, or records that
/// come twice, which Kafka's idempotent producers keep away: they are for the model and the simulation of the protocol.
const NOTICED: [Bug; 8] = [
    Bug::EpochUnchecked,
    Bug::BaseUnchecked,
    Bug::ContiguityUnchecked,
    Bug::ReadWithoutLease,
    Bug::UnknownTakenAsNone,
    Bug::ReadBackTakenAsFinal,
    Bug::ResumesOneLater,
    Bug::SnapshotWithoutProtocol,
];

/// One test for all: the switch is the whole process's.
#[test]
fn seeded_bugs_of_whole_nodes_are_noticed() {
    let mut unnoticed = Vec::new();
    for bug in NOTICED {
        seeded::set(Some(bug));
        let found = (0..SEEDS_MAX).find_map(|seed| Some((seed, try_run(seed).err()?.0)));
        seeded::set(None);
        match found {
            Some((seed, wrong)) => {
                let wrong: String = wrong.chars().take(160).collect();
                println!("{bug:?}: noticed at seed {seed}: {wrong}");
            }
            None => unnoticed.push(bug),
        }
    }
    for bug in seeded::MOVES {
        seeded::set(Some(bug));
        let ended = crate::runtime().block_on(a_voter_that_cannot_store(0));
        seeded::set(None);
        match ended {
            Err(wrong) => println!("{bug:?}: noticed: {wrong}"),
            Ok(()) => unnoticed.push(bug),
        }
    }
    assert!(unnoticed.is_empty(), "nobody notices {unnoticed:?}");
}
