//! Whole nodes on a simulated network: the product's registry, replicas, routers and forwarding, several nodes in one thread
//! and one time that stands still, over the simulated log and store. Everything is drawn from a seed: the same seed is the
//! same run, to the byte.
//!
//! ```text
//! clients ──▶ Network ──▶ router ─▶ registry ─▶ replica ─▶ SimLog ──▶ SimBroker ◀── faults
//!                ▲          └─▶ Peers ──▶ Network            └─▶ SimStore ──▶ SimSchema ◀── faults
//! ```

mod check;
mod clients;
mod faults;
mod life;
mod moves;
mod network;
mod node;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod seen;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use kvcluster_suite::history::{self, Event};
use seen::Point;
use tokio::runtime::{Builder, Runtime};
use world::World;

/// Seeds of one test run, of those that nobody chose.
const SEEDS: u64 = 200;
/// The same of a long run.
const SEEDS_LONG: u64 = 3_000;
/// Seeds that are run twice.
const SEEDS_TWICE: u64 = 20;
/// The same of a long run.
const SEEDS_TWICE_LONG: u64 = 300;
const THREADS: u64 = 2;
/// Names the one seed to run.
const SEED: &str = "SIMULATION_SEED";

/// What a run came to: its trace, and the situations that it met.
type Ran = (u64, BTreeMap<Point, u64>);

/// Runs a seed; what is wrong, and the history, where something is.
fn try_run(seed: u64) -> Result<Ran, (String, Vec<Event>)> {
    runtime().block_on(async {
        let mut world = World::new(seed);
        let ended = world.run().await.and_then(|()| check::check(&world));
        match ended {
            Ok(()) => Ok((check::trace(&world), world.seen.counts())),
            Err(wrong) => Err((wrong, world.history.events())),
        }
    })
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    runtime.expect("a runtime of one thread")
}

/// The same; fails with the command that runs it once more.
fn run(seed: u64) -> Ran {
    try_run(seed).unwrap_or_else(|(wrong, events)| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("seed-{seed}.jsonl"));
        let saved = history::save(&file, &events);
        panic!(
            "seed {seed}: {wrong}\nits history is in {} ({saved:?}); once more: \
             {SEED}={seed} cargo test --workspace --locked --test nodes -- --nocapture",
            file.display()
        )
    })
}

#[test]
fn histories_are_linearizable_and_stores_hold_what_the_log_says() {
    let chosen: Option<u64> = std::env::var(SEED)
        .ok()
        .map(|text| text.parse().expect("a number"));
    let count = if is_long() { SEEDS_LONG } else { SEEDS };
    // Others in each run: what one run does not meet, a later one may.
    let rotating = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_secs())
        * SEEDS;
    let seeds = chosen.map_or(rotating..rotating + count, |seed| seed..seed + 1);
    let total = run_all(seeds.clone());
    println!("seeds {seeds:?}: {total:#?}");
    if chosen.is_none() {
        let never: Vec<_> = seen::ALL
            .iter()
            .filter(|point| !total.contains_key(point))
            .collect();
        assert!(never.is_empty(), "no seed met {never:?}");
    }
}

fn is_long() -> bool {
    std::env::var_os("KVCLUSTER_LONG").is_some()
}

fn run_all(seeds: std::ops::Range<u64>) -> BTreeMap<Point, u64> {
    let workers: Vec<_> = (0..THREADS)
        .map(|worker| {
            let mine = seeds.clone().filter(move |seed| seed % THREADS == worker);
            std::thread::spawn(move || mine.map(|seed| run(seed).1).collect::<Vec<_>>())
        })
        .collect();
    let mut total = BTreeMap::new();
    for worker in workers {
        for counts in worker.join().expect("a seed failed, see above") {
            for (point, times) in counts {
                *total.entry(point).or_default() += times;
            }
        }
    }
    total
}

#[test]
fn a_seed_gives_the_same_trace_each_time() {
    let twice = if is_long() {
        SEEDS_TWICE_LONG
    } else {
        SEEDS_TWICE
    };
    let mut traces = BTreeSet::new();
    for seed in (0..twice).map(|number| number * 77) {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second, "seed {seed}");
        traces.insert(first.0);
    }
    let count = u64::try_from(traces.len()).expect("few");
    assert_eq!(count, twice, "other seeds are other runs");
}
