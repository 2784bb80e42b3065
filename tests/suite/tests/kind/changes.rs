//! A store that changes while it is used: nodes come and go, are replaced, drained, upgraded, and lost with what they stand on.
//!
//! Each change runs under the load of clients whose history is judged: nothing acknowledged is lost, every read is
//! linearizable, and each node's schema holds the same at the end. A run makes three of the changes, in turn;
//! `KVCLUSTER_LONG` makes all, and `KVCLUSTER_CHANGE=drain` the one whose name begins so.

#[path = "changes/machines.rs"]
mod machines;
#[path = "changes/nodes.rs"]
mod nodes;
#[path = "changes/scene.rs"]
mod scene;
#[path = "changes/versions.rs"]
mod versions;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use kvcluster_suite::history::client::Run;
use kvcluster_suite::history::porcupine::Porcupine;
use kvcluster_suite::history::verdict::{self, Counts};
use kvcluster_suite::history::{Event, resolve};
use kvcluster_suite::{check, election};

use self::scene::Scene;
use crate::support::{empty_demo, expect_everywhere, now_seconds, settled};

/// Makes only the change whose name begins with this.
const ONLY: &str = "KVCLUSTER_CHANGE";
/// Clients at once, and the pause of each: a key's history stays short enough to be judged, however long a change takes.
const CLIENTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(20);
/// Load before the change and after it.
const AROUND: Duration = Duration::from_secs(1);
/// Longest time until every key is answered at the end.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Rows that are there before, so that there is something to move.
const ROWS: u32 = 2_000;

/// A change, and what its clients may notice.
struct Change {
    name: &'static str,
    make: fn(&Scene) -> Result<()>,
    /// Whether not one request may fail.
    unnoticed: bool,
    /// Longest time for which a key may be asked for in vain.
    wait_max: Duration,
}

const fn planned(name: &'static str, make: fn(&Scene) -> Result<()>) -> Change {
    Change {
        name,
        make,
        unnoticed: true,
        wait_max: Duration::from_secs(1),
    }
}

/// Leaders that are gone without a word are suspected for 0.6 s, and their lease ends meanwhile; then comes the claim.
const fn unplanned(name: &'static str, make: fn(&Scene) -> Result<()>) -> Change {
    Change {
        name,
        make,
        unnoticed: false,
        wait_max: Duration::from_secs(3),
    }
}

/// In groups; a run makes one of each.
const CHANGES: [&[Change]; 3] = [
    &[
        planned("nodes are added and removed", nodes::added_and_removed),
        planned(
            "a removal is called off half way",
            nodes::removal_called_off,
        ),
        planned("a named node is replaced", nodes::replaced),
    ],
    &[
        planned("drained workers, one after the other", machines::drained),
        unplanned("a worker is lost, and comes back", machines::lost),
        unplanned("a schema is dropped by hand", nodes::schema_dropped),
    ],
    &[
        planned("an upgrade of the image", versions::upgraded),
        planned("a bad image, then a good one", versions::bad_then_good),
    ],
];

#[test]
fn a_store_that_changes_loses_nothing() -> Result<()> {
    let porcupine = Porcupine::build()?;
    for change in chosen()? {
        under_load(change, &porcupine).with_context(|| change.name)?;
    }
    Ok(())
}

/// Those of this run.
fn chosen() -> Result<Vec<&'static Change>> {
    let all = CHANGES.iter().copied().flatten();
    if let Some(only) = std::env::var_os(ONLY) {
        let only = only.to_string_lossy();
        let chosen: Vec<&Change> = all
            .filter(|change| change.name.starts_with(&*only))
            .collect();
        ensure!(!chosen.is_empty(), "{ONLY}: there is no change {only:?}");
        return Ok(chosen);
    }
    if std::env::var_os("KVCLUSTER_LONG").is_some() {
        return Ok(all.collect());
    }
    let turn = usize::try_from(now_seconds()?)?;
    Ok(CHANGES
        .iter()
        .map(|group| &group[turn % group.len()])
        .collect())
}

fn under_load(change: &Change, porcupine: &Porcupine) -> Result<()> {
    let (lab, kubectl) = empty_demo()?;
    let leaders = settled(&lab, &kubectl, None)?;
    let scene = Scene::new(kubectl, u32::try_from(leaders.len())?);
    let before = scene::fill(ROWS)?;
    let name = format!("change{:x}", now_seconds()?);
    let keys = election::keys_of_slots(&format!("{name}."), &leaders)?;
    let mut run = Run::new(name.clone(), vec![lab.service()?.to_owned()], keys);
    run.pause = PAUSE;
    println!("changes: {} begins", change.name);
    let begin = Instant::now();
    let (mut events, made) = load(&run, || (change.make)(&scene))?;
    let took = begin.elapsed();
    made?;

    let (wait, awaited) =
        verdict::longest_wait_for_a_key(&events).context("something was answered")?;
    events.append(&mut run.read_all(ANSWER_LIMIT)?);
    let changes = resolve::changes(lab.kafka()?, &lab.names().log_topic())?;
    let judged = verdict::judge(&name, &events, &verdict::by_key(changes), porcupine);
    let counts = judged.map_err(|error| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        error.context(format!("events: {}", verdict::keep(folder, &name, &events)))
    })?;
    let Counts {
        answered,
        refused,
        unknown,
    } = counts;
    println!(
        "changes: {}: {:.1} s; {answered} answered, {refused} refused, {unknown} unknown, linearizable; longest wait for a key {} ms",
        change.name,
        took.as_secs_f64(),
        wait.as_millis()
    );
    let rows = check::scan(lab.service()?)?;
    for (key, value) in &before {
        ensure!(rows.get(key) == Some(value), "{key} is {:?}", rows.get(key));
    }
    expect_everywhere(&scene::lab()?, &rows)?;
    let failed = verdict::failures(&events, 3);
    ensure!(
        !change.unnoticed || refused + unknown == 0,
        "{} of {} operations failed: {failed:?}",
        refused + unknown,
        counts.operations()
    );
    ensure!(
        wait <= change.wait_max,
        "no answer for {awaited} in {wait:?}; failures: {failed:?}"
    );
    Ok(())
}

/// Runs something under load: what the clients saw, and how it went.
fn load(run: &Run, make: impl FnOnce() -> Result<()>) -> Result<(Vec<Event>, Result<()>)> {
    thread::scope(|scope| {
        let mut rng = Rng::new();
        let start = |seed| scope.spawn(move || run.work(seed));
        let clients: Vec<_> = (0..CLIENTS).map(|_| start(rng.u64(..))).collect();
        thread::sleep(AROUND);
        let outcome = make();
        thread::sleep(AROUND);
        run.stop();
        let mut events = Vec::new();
        for client in clients {
            events.append(&mut client.join().ok().context("a client panicked")??);
        }
        events.sort_by_key(|event| event.t_ns);
        Ok((events, outcome))
    })
}
