//! Simulation of the slot protocol: three machines over one adversarial partition, everything drawn from a seed.
//!
//! The partition loses acknowledgements, drops records and says that it does not know, takes records of dead processes much
//! later or twice, and holds foreign records and gaps. Processes pause, die, and come back from an older position. Clocks
//! run up to 4 % fast or slow. Hints about peers are often wrong. Clients send requests with an idempotency key again, whatever
//! became of them. After each run the history is checked, see `check`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a test are small"
)]

mod check;
mod random;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod world;

use std::ops::AddAssign;
use std::time::SystemTime;

use world::World;

/// Seeds of one test run, of those that nobody chose. Each is about ten seconds of simulated time.
const SEEDS: u64 = 5_000;
/// The same of a long run.
const SEEDS_LONG: u64 = 100_000;
const THREADS: u64 = 2;

/// What happened in a run: a simulation in which nothing happens proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    claims_won: u64,
    releases: u64,
    writes_answered: u64,
    writes_unknown: u64,
    writes_lost: u64,
    writes_unknown_that_took_effect: u64,
    writes_repeated: u64,
    writes_repeated_after_unknown: u64,
    keys_reused: u64,
    reads_by_lease: u64,
    reads_by_record: u64,
    reads_refused_late: u64,
    records_ignored: u64,
    restarts: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.claims_won += other.claims_won;
        self.releases += other.releases;
        self.writes_answered += other.writes_answered;
        self.writes_unknown += other.writes_unknown;
        self.writes_lost += other.writes_lost;
        self.writes_unknown_that_took_effect += other.writes_unknown_that_took_effect;
        self.writes_repeated += other.writes_repeated;
        self.writes_repeated_after_unknown += other.writes_repeated_after_unknown;
        self.keys_reused += other.keys_reused;
        self.reads_by_lease += other.reads_by_lease;
        self.reads_by_record += other.reads_by_record;
        self.reads_refused_late += other.reads_refused_late;
        self.records_ignored += other.records_ignored;
        self.restarts += other.restarts;
    }
}

fn try_run(seed: u64) -> Result<(Tally, u64), String> {
    let mut world = World::new(seed);
    world.run();
    Ok((check::check(&world)?, world.trace))
}

fn run(seed: u64) -> (Tally, u64) {
    try_run(seed).unwrap_or_else(|wrong| {
        panic!(
            "seed {seed}: {wrong}; once more: SIMULATION_SEED={seed} cargo test -p kvcluster-sim --test simulation"
        )
    })
}

#[test]
fn histories_are_linearizable_and_replicas_agree() {
    let first = std::env::var("SIMULATION_SEED")
        .ok()
        .map(|text| text.parse().expect("a number"));
    // Others in each run: what one run does not meet, a later one may.
    let count = if std::env::var_os("KVCLUSTER_LONG").is_some() {
        SEEDS_LONG
    } else {
        SEEDS
    };
    let rotating = || {
        SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_secs())
            * SEEDS
    };
    let seeds = first.map_or_else(
        || {
            let from = rotating();
            from..from + count
        },
        |seed: u64| seed..seed + 1,
    );
    let workers: Vec<_> = (0..THREADS)
        .map(|worker| {
            let mine = seeds.clone().filter(move |seed| seed % THREADS == worker);
            std::thread::spawn(move || {
                let mut total = Tally::default();
                mine.for_each(|seed| total += run(seed).0);
                total
            })
        })
        .collect();
    let mut total = Tally::default();
    for worker in workers {
        total += worker.join().expect("a seed failed, see above");
    }
    println!("seeds {seeds:?}: {total:#?}");
    if first.is_none() {
        let Tally {
            claims_won,
            releases,
            writes_answered,
            writes_unknown,
            writes_lost,
            ..
        } = total;
        let Tally {
            reads_by_lease,
            reads_by_record,
            reads_refused_late,
            ..
        } = total;
        let Tally {
            records_ignored,
            restarts,
            writes_unknown_that_took_effect,
            ..
        } = total;
        let Tally {
            writes_repeated,
            writes_repeated_after_unknown,
            keys_reused,
            ..
        } = total;
        for happened in [
            claims_won / 3,
            releases,
            writes_answered / 50,
            writes_unknown,
            writes_lost,
            writes_unknown_that_took_effect,
            writes_repeated / 10,
            writes_repeated_after_unknown,
            keys_reused,
            reads_by_lease / 50,
            reads_by_record,
            reads_refused_late * 10,
            records_ignored,
            restarts,
        ] {
            assert!(happened > count / 10, "too little happened: {total:#?}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_trace_each_time() {
    for seed in (0..20).map(|number| number * 77) {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
