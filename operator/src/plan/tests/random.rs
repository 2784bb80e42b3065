//! Thousands of clusters of any shape: each is made, and then nothing is left to do. What the CRD would have refused is refused, or
//! planned like anything else.

use fastrand::Rng;

use super::model::Model;
use crate::cluster::Target;
use crate::fixtures::random::{Fixed, any_cluster, seed};
use crate::plan::Plan;

/// Clusters that are made.
const CLUSTERS: u64 = 10_000;
/// Slots of a cluster at most.
const SLOTS_MAX: i32 = 12;
/// Threads that share the work.
const THREADS: u64 = 2;
/// Clusters with numbers that the CRD does not allow.
const ODD_CLUSTERS: u64 = 1_000;

/// The plan of a cluster that was made from nothing.
fn plan_once_made(seed: u64) -> Plan {
    let mut dice = Rng::with_seed(seed);
    let fixed = Fixed::any(&mut dice, SLOTS_MAX);
    Model::new(any_cluster(&mut dice, fixed)).run_all()
}

#[test]
fn the_plan_of_a_cluster_that_is_as_wanted_is_empty() {
    let first = seed() * CLUSTERS;
    let judge = |thread: u64| {
        let seeds = (0..CLUSTERS).filter(|number| number % THREADS == thread);
        let judged = seeds.map(|number| {
            let plan = plan_once_made(first + number);
            let empty = plan.steps.is_empty()
                && plan.withheld.is_empty()
                && plan.later.is_empty()
                && plan.moves.is_empty();
            assert!(
                empty && plan.is_ready(),
                "seed {}: {plan:#?}",
                first + number
            );
        });
        judged.count()
    };
    let counted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || judge(thread)))
            .collect();
        let counts = threads.into_iter();
        counts
            .map(|thread| thread.join().expect("no thread fails"))
            .sum()
    });
    println!("{counted} clusters from seed {first}");
    assert_eq!(counted as u64, CLUSTERS);
}

#[test]
fn numbers_that_the_crd_forbids_are_refused_or_planned_like_others() {
    let first = seed() * ODD_CLUSTERS;
    let mut refused = 0;
    for seed in first..first + ODD_CLUSTERS {
        let mut dice = Rng::with_seed(seed);
        let fixed = Fixed::any(&mut dice, SLOTS_MAX);
        let odd = |dice: &mut Rng| [-1, 0, 1, 2, 9, 100][dice.usize(..6)];
        let cluster = any_cluster(&mut dice, fixed).with(|cluster| {
            let spec = &mut cluster.spec;
            match dice.u8(..8) {
                0 => spec.nodes = odd(&mut dice),
                1 => spec.replication = odd(&mut dice),
                2 => spec.slots = odd(&mut dice),
                3 => spec.ring.virtual_nodes = odd(&mut dice),
                4 => spec.ring.load_factor_percent = odd(&mut dice),
                5 => spec.rebalance.max_concurrent_moves = odd(&mut dice),
                6 => spec.kafka.replication_factor = odd(&mut dice),
                _ => spec.limits.cache_mebibytes = odd(&mut dice),
            }
        });
        if Target::of(&cluster.build()).is_err() {
            refused += 1;
            continue;
        }
        // It would panic in a hot loop.
        let plan = Model::new(cluster).run_all();
        assert!(!plan.conditions.is_empty(), "seed {seed}");
    }
    println!("{refused} of {ODD_CLUSTERS} refused, from seed {first}");
    assert!(refused > 0);
}
