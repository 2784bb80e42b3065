//! Histories of a real store under faults.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use kvcluster_suite::fault::{self, Fault, Plan};
use kvcluster_suite::history::client::Run;
use kvcluster_suite::history::porcupine::Porcupine;
use kvcluster_suite::history::resolve;
use kvcluster_suite::history::verdict::{self, Counts, longest_silence};
use kvcluster_suite::history::{Event, What};
use kvcluster_suite::lab::Lab;
use kvcluster_suite::{check, processes};
use serde::Serialize;

use crate::support::{from_the_log, whole_store};

/// Histories in a run, each kind of fault once and half of them twice, in turn; and in a long one.
const HISTORIES: usize = 44;
const HISTORIES_LONG: usize = 500;
/// Chooses the plans of a run; the time of day if it is not set.
const SEED: &str = "KVCLUSTER_HISTORIES_SEED";
/// Overrides the number of histories.
const COUNT: &str = "KVCLUSTER_HISTORIES";
/// Names the one kind of fault to make, to look at it.
const ONLY: &str = "KVCLUSTER_HISTORIES_FAULT";
/// Results of long runs, seen from this crate.
const RESULTS: &str = "../results/histories.jsonl";
/// Longest run of `git`.
const GIT_LIMIT: Duration = Duration::from_secs(10);
/// Clients at once, and keys of a history.
const CLIENTS: usize = 8;
const KEYS: usize = 5;
/// Load before the first fault, and after the last one was taken back.
const BEFORE: Duration = Duration::from_millis(400);
const AFTER: Duration = Duration::from_secs(1);
/// One history in so many has two faults at a time.
const PAIRED: usize = 3;
/// Longest time until every node answers for every key, once each slot has a leader.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// One history, before it is judged.
pub(crate) struct Seen {
    pub(crate) name: String,
    plans: Vec<Plan>,
    pub(crate) events: Vec<Event>,
    /// The faults that happened.
    fired: Vec<Fault>,
    /// From a second after the last fault's end until the store was whole and answered for every key through every node.
    settled: Duration,
}

#[test]
fn every_history_under_faults_is_linearizable() -> Result<()> {
    let lab = whole_store()?;
    check::empty(lab.service()?)?;
    let porcupine = Porcupine::build()?;
    let seed = number_of(SEED)?.unwrap_or_else(|| now().as_secs());
    let is_long = std::env::var_os("KVCLUSTER_LONG").is_some();
    let usual = if is_long { HISTORIES_LONG } else { HISTORIES };
    let count = number_of(COUNT)?.map_or(Ok(usual), usize::try_from)?;
    println!("histories: {count} with {SEED}={seed}");
    let mut rng = Rng::with_seed(seed);
    let kinds = kinds()?;
    let first = rng.usize(..kinds.len());
    let mut histories = Vec::new();
    for number in 0..count {
        let plans = plans(&kinds, number + first, &mut rng);
        let name = format!("h{seed}.{number}");
        let history = run(&lab, name, plans, rng.u64(..))
            .with_context(|| format!("history {number}, {SEED}={seed}"))?;
        println!("histories: {}", line(&history)?);
        histories.push(history);
    }
    let changes = resolve::changes(lab.kafka()?, &lab.names().log_topic())?;
    let rebuilt = resolve::rebuilt(&changes);
    check::expect_same(&check::scan(lab.service()?)?, &rebuilt)
        .context("the store against a rebuild from the log")?;
    // The nodes themselves come to the same from the log alone.
    from_the_log(None)?;
    let lab = whole_store()?;
    check::expect_everywhere(&lab, &rebuilt).context("the nodes' own rebuild from the log")?;
    let by_key = verdict::by_key(changes);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut judged = 0;
    for history in &histories {
        let verdict = verdict::judge(&history.name, &history.events, &by_key, &porcupine);
        let counts = verdict.map_err(|error| {
            let kept = verdict::keep(folder, &history.name, &history.events);
            error.context(format!(
                "history {} with {:?}; events: {kept}",
                history.name, history.plans
            ))
        })?;
        judged += counts.operations();
        ensure!(
            counts.unknown * 2 < counts.operations(),
            "{}: nearly everything is unknown",
            history.name
        );
    }
    let summary = Summary::new(seed, &histories, judged)?;
    summary.print();
    if is_long {
        summary.keep()?;
    }
    Ok(())
}

/// The kinds that take turns.
fn kinds() -> Result<Vec<Fault>> {
    let Some(only) = std::env::var_os(ONLY) else {
        return Ok(fault::ALL.to_vec());
    };
    let named = |kind: &Fault| format!("{kind:?}") == only.to_string_lossy();
    let kinds: Vec<Fault> = fault::ALL.into_iter().filter(named).collect();
    ensure!(
        !kinds.is_empty(),
        "{ONLY}: there is no fault {}",
        only.display()
    );
    Ok(kinds)
}

/// The faults of a history: each kind in its turn, and sometimes another one at the same time.
fn plans(kinds: &[Fault], number: usize, rng: &mut Rng) -> Vec<Plan> {
    let kind = kinds[number % kinds.len()];
    let mut plans = vec![Plan::new(kind, rng)];
    if number % PAIRED == PAIRED - 1 && kinds.len() > 1 {
        let fits = |other: &Fault| other.goes_with(kind);
        let others: Vec<Fault> = fault::ALL.into_iter().filter(fits).collect();
        plans.extend(rng.choice(others).map(|other| Plan::new(other, rng)));
    }
    plans
}

pub(crate) fn run(lab: &Lab, name: String, plans: Vec<Plan>, seed: u64) -> Result<Seen> {
    let keys = (0..KEYS).map(|key| format!("{name}.{key}")).collect();
    let run = Run::new(name, lab.urls()?, keys);
    let (faults, fired) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let mut events = thread::scope(|scope| -> Result<Vec<Event>> {
        let mut rng = Rng::with_seed(seed);
        let start = |seed| {
            let run = &run;
            scope.spawn(move || run.work(seed))
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| start(rng.u64(..))).collect();
        thread::sleep(BEFORE);
        let injected = inject(&run, &plans, &mut rng, &faults, &fired);
        thread::sleep(AFTER);
        run.stop();
        let mut events = Vec::new();
        for client in clients {
            events.append(&mut client.join().ok().context("a client panicked")??);
        }
        injected.map(|()| events)
    })?;
    let healed = Instant::now();
    // A restarted node has another process.
    let lab = whole_store()?;
    events.append(&mut run.read_all(ANSWER_LIMIT)?);
    let settled = healed.elapsed();
    events.append(&mut faults.into_inner().ok().context("a fault panicked")?);
    events.sort_by_key(|event| event.t_ns);
    let rows = check::scan(lab.service()?)?;
    check::expect_everywhere(&lab, &rows)?;
    Ok(Seen {
        name: run.name,
        plans,
        fired: fired.into_inner().ok().context("a fault panicked")?,
        events,
        settled,
    })
}

/// Makes the faults, the second while the first is held.
fn inject(
    run: &Run,
    plans: &[Plan],
    rng: &mut Rng,
    faults: &Mutex<Vec<Event>>,
    fired: &Mutex<Vec<Fault>>,
) -> Result<()> {
    thread::scope(|scope| {
        let mut running = Vec::new();
        for plan in plans {
            running.push(scope.spawn(move || {
                let note = |target: &str, phase: String| {
                    let fault = format!("{:?}", plan.fault);
                    let target = target.to_owned();
                    let event = run.event(What::Fault {
                        fault,
                        target,
                        phase,
                    });
                    faults.lock().expect("nobody panics with it").push(event);
                };
                note("", "begins".to_owned());
                let done = plan.run(&run.keys[0], &|impatient| run.set_impatient(impatient))?;
                ensure!(
                    done.fired || plans.len() > 1,
                    "{plan:?} of {} did not happen: {}",
                    done.target,
                    done.evidence
                );
                if done.fired {
                    fired
                        .lock()
                        .expect("nobody panics with it")
                        .push(plan.fault);
                }
                note(&done.target, done.evidence);
                Ok(())
            }));
            thread::sleep(Duration::from_millis(rng.u64(..300)));
        }
        let mut ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended.try_for_each(|ended| ended.ok().context("a fault panicked")?)
    })
}

fn line(history: &Seen) -> Result<String> {
    let Counts {
        answered,
        refused,
        unknown,
    } = Counts::of(&history.events)?;
    let faults = history.events.iter().filter_map(|event| match &event.what {
        What::Fault {
            fault,
            target,
            phase,
        } if !target.is_empty() => Some(format!("{fault} of {target} ({phase})")),
        _ => None,
    });
    let faults: Vec<String> = faults.collect();
    let silence = longest_silence(&history.events).as_secs_f64();
    Ok(format!(
        "{}: {answered} answered, {refused} refused, {unknown} unknown; longest silence {silence:.1} s; whole after {:.1} s; {}",
        history.name,
        history.settled.as_secs_f64(),
        faults.join("; ")
    ))
}

/// What a run was, as one line of the results.
#[derive(Serialize)]
struct Summary {
    command: &'static str,
    commit: String,
    seed: u64,
    histories: usize,
    operations: usize,
    /// Each kind: how often it happened, and of those histories in which it was alone the longest time in which no client
    /// got an answer, milliseconds.
    faults: BTreeMap<String, (usize, u128)>,
    /// Longest time from the last fault's end until everything answered, milliseconds.
    whole_after_ms: u128,
    verdict: &'static str,
}

impl Summary {
    fn new(seed: u64, histories: &[Seen], operations: usize) -> Result<Self> {
        let mut faults: BTreeMap<String, (usize, u128)> = BTreeMap::new();
        for history in histories {
            let silence = longest_silence(&history.events).as_millis();
            for fault in &history.fired {
                let (count, longest) = faults.entry(format!("{fault:?}")).or_default();
                *count += 1;
                if history.plans.len() == 1 {
                    *longest = silence.max(*longest);
                }
            }
        }
        let settled = histories.iter().map(|history| history.settled).max();
        let mut git = Command::new("git");
        git.args(["describe", "--always", "--dirty"]);
        Ok(Self {
            command: "cargo lab test --only histories",
            commit: processes::output(&mut git, GIT_LIMIT)?.trim().to_owned(),
            seed,
            histories: histories.len(),
            operations,
            faults,
            whole_after_ms: settled.unwrap_or_default().as_millis(),
            verdict: "linearizable",
        })
    }

    fn print(&self) {
        let Self {
            histories,
            operations,
            faults,
            whole_after_ms,
            ..
        } = self;
        println!(
            "histories: {histories} linearizable with {operations} operations; {} kinds of fault; whole again after {whole_after_ms} ms at most",
            faults.len()
        );
        for (fault, (count, silence)) in faults {
            println!("histories: {fault}: {count} times, longest silence {silence} ms");
        }
    }

    /// Appends the line to the results, where a long run's are kept.
    fn keep(&self) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RESULTS);
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        let line = serde_json::to_string(self)?;
        writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))
    }
}

fn number_of(variable: &str) -> Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => {
            Ok(Some(text.parse().with_context(|| {
                format!("{variable}={text:?} is no number")
            })?))
        }
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => bail!("{variable}: {error}"),
    }
}

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}
