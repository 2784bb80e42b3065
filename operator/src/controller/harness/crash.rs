//! Every write of every scenario goes wrong, in every way, once.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::Value;

use super::faults::{ALL, Fault};
use super::scenarios::{SCENARIOS, Scenario};
use super::world::{End, World};
use crate::controller::pass::Outcome;
use crate::fixtures::cluster;

/// Passes at the end that must write nothing.
const FURTHER_PASSES: usize = 20;
/// How many rounds old a view is.
const VIEWS_BACK: [usize; 4] = [1, 3, 8, 20];
/// Parts of the runs, of which each run of the tests makes one.
const SHARES: usize = 5;

/// A run without any disturbance: where it ends, what it wrote, and the world before each of its rounds, with how much was
/// written by then.
struct Reference {
    end: End,
    writes: Vec<String>,
    rounds: Vec<(usize, World)>,
}

impl Scenario {
    fn begin(&self) -> World {
        World::new(&self.before.map_or_else(cluster, |before| before()))
    }

    async fn reference(&self) -> Result<Reference, String> {
        let mut world = self.begin();
        if self.before.is_some() {
            world.settle().await?;
            world.faults.reset();
        }
        (self.change)(&world);
        if let Some((until, change)) = self.half_way {
            world.settle_until(until).await?;
            change(&world);
            world.faults.reset();
        }
        let mut rounds = Vec::new();
        let look = |_, world: &World| rounds.push((world.faults.writes().len(), world.fork()));
        let outcome = world.settle_with(look).await?;
        self.check_end(&mut world, outcome).await?;
        Ok(Reference {
            end: world.end(),
            writes: world.faults.writes(),
            rounds,
        })
    }

    /// It ended as it should, and nothing is written any more.
    async fn check_end(&self, world: &mut World, outcome: Outcome) -> Result<(), String> {
        if outcome != self.outcome {
            return Err(format!("ends {outcome:?}: {:#?}", world.cluster()));
        }
        let writes = world.faults.writes().len();
        for _ in 0..FURTHER_PASSES {
            world.pass().await;
        }
        let further = world.faults.writes().split_off(writes);
        if !further.is_empty() {
            return Err(format!("goes on writing: {further:?}"));
        }
        Ok(())
    }

    /// Goes on from before the write number `at`, which goes wrong.
    async fn with_fault(
        &self,
        reference: &Reference,
        at: usize,
        fault: Fault,
    ) -> Result<End, String> {
        let before = reference
            .rounds
            .iter()
            .rev()
            .find(|(count, _)| *count <= at);
        let mut world = before.ok_or("no round before it")?.1.fork();
        world.faults.set(at, fault);
        let mut outcome = world.settle().await?;
        if !world.faults.has_struck() {
            return Err("the fault never came".to_owned());
        }
        if fault == Fault::Late {
            world.deliver_late();
            outcome = world.settle().await?;
        }
        self.check_end(&mut world, outcome).await?;
        Ok(world.end())
    }

    /// One round sees the Kubernetes objects as they were some rounds before.
    async fn with_old_view(
        &self,
        reference: &Reference,
        round: usize,
        back: usize,
    ) -> Result<End, String> {
        let mut world = reference.rounds[round].1.fork();
        let then = round.checked_sub(back).ok_or("no round before it")?;
        world.api.be_stale(Some(&reference.rounds[then].1.api));
        world.pass().await;
        world.api.be_stale(None);
        let outcome = world.settle().await?;
        self.check_end(&mut world, outcome).await?;
        Ok(world.end())
    }

    /// Runs everything, or a share of it that rotates: the number of runs, and what went wrong.
    async fn run_all(&self) -> (usize, Vec<String>) {
        let reference = match self.reference().await {
            Ok(reference) => reference,
            Err(wrong) => return (1, vec![format!("undisturbed: {wrong}")]),
        };
        let (mut runs, mut failures) = (0, Vec::new());
        let mut judge = |what: String, ended: Result<End, String>| {
            runs += 1;
            let wrong = match ended {
                Ok(end) if end == reference.end => return,
                Ok(end) => difference(&reference.end, &end),
                Err(wrong) => wrong,
            };
            failures.push(format!("{what}: {wrong}"));
        };
        let share = Share::of_this_run();
        for (at, write) in reference.writes.iter().enumerate() {
            for (number, fault) in ALL.into_iter().enumerate() {
                if share.takes(at + number) {
                    let ended = self.with_fault(&reference, at, fault).await;
                    judge(format!("{fault:?} at {at} ({write})"), ended);
                }
            }
        }
        for round in 1..reference.rounds.len() {
            for (number, back) in VIEWS_BACK.into_iter().enumerate() {
                if round >= back && share.takes(round + number) {
                    let ended = self.with_old_view(&reference, round, back).await;
                    judge(format!("round {round} sees what was {back} before"), ended);
                }
            }
        }
        println!(
            "{}: {} writes, {runs} runs",
            self.name,
            reference.writes.len()
        );
        (runs, failures)
    }
}

/// The part of all runs that one run of the tests makes.
struct Share(Option<usize>);

impl Share {
    fn of_this_run() -> Self {
        if std::env::var_os("KVCLUSTER_LONG").is_some() {
            return Self(None);
        }
        let since = SystemTime::UNIX_EPOCH.elapsed();
        let seconds = since.map_or(0, |time| time.as_secs());
        Self(Some(usize::try_from(seconds).unwrap_or(0) % SHARES))
    }

    fn takes(&self, number: usize) -> bool {
        self.0.is_none_or(|share| number % SHARES == share)
    }
}

fn difference(wanted: &End, end: &End) -> String {
    let mut words = Vec::new();
    for (name, object) in &wanted.objects {
        match end.objects.get(name) {
            None => words.push(format!("{name} is not there")),
            Some(ended) => fields(name, object, ended, &mut words),
        }
    }
    for name in end.objects.keys() {
        if !wanted.objects.contains_key(name) {
            words.push(format!("{name} is left"));
        }
    }
    for (name, count) in &end.made {
        if wanted.made.get(name) != Some(count) {
            let usual = wanted.made.get(name);
            words.push(format!("{count} of {name} were made, not {usual:?}"));
        }
    }
    if wanted.outside != end.outside {
        words.push(format!(
            "{:#?} instead of {:#?}",
            end.outside, wanted.outside
        ));
    }
    words.join("; ")
}

/// Says which fields differ.
fn fields(place: &str, wanted: &Value, ended: &Value, words: &mut Vec<String>) {
    match (wanted, ended) {
        _ if wanted == ended => {}
        (Value::Object(wanted), Value::Object(ended)) => {
            let names: BTreeSet<&String> = wanted.keys().chain(ended.keys()).collect();
            for name in names {
                let (wanted, ended) = (wanted.get(name), ended.get(name));
                let (none, place) = (&Value::Null, format!("{place}.{name}"));
                fields(&place, wanted.unwrap_or(none), ended.unwrap_or(none), words);
            }
        }
        _ => words.push(format!("{place} is {ended}, not {wanted}")),
    }
}

/// Runs of all scenarios so far, and the scenarios.
static TOTAL: Mutex<(usize, usize)> = Mutex::new((0, 0));
/// Runs that the scenarios come to, at least.
const RUNS_MIN: usize = 1_500;

/// Counts what a scenario did. The last one says what all came to.
fn count(runs: usize) {
    let mut total = TOTAL.lock().expect("nobody panics with it");
    *total = (total.0 + runs, total.1 + 1);
    if total.1 == SCENARIOS.len() {
        println!("{} disturbed runs of {} scenarios", total.0, total.1);
        let share = if Share::of_this_run().0.is_none() {
            1
        } else {
            SHARES
        };
        assert!(total.0 * share >= RUNS_MIN, "only {} runs", total.0);
    }
}

pub(super) async fn check(name: &str) {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
    let (runs, failures) = scenario.expect("a scenario").run_all().await;
    count(runs);
    assert!(
        failures.is_empty(),
        "{} of {runs} runs of {name} end otherwise:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// One test per scenario, named in words.
macro_rules! scenarios {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[tokio::test(start_paused = true)]
            pub(crate) async fn $test() {
                check($name).await;
            }
        )*

        #[test]
        fn every_scenario_is_run() {
            let named = [$($name),*];
            assert!(SCENARIOS.iter().all(|scenario| named.contains(&scenario.name)));
        }
    };
}

scenarios! {
    a_disturbed_creation_ends_the_same: "create",
    a_disturbed_upgrade_ends_the_same: "upgrade",
    a_disturbed_change_ends_the_same: "change of configuration",
    a_disturbed_bad_upgrade_ends_the_same: "bad image",
    a_disturbed_repair_of_a_bad_image_ends_the_same: "bad image put right",
    a_disturbed_rebuild_ends_the_same: "schema dropped",
    a_disturbed_deletion_ends_the_same: "delete",
    a_disturbed_scale_out_ends_the_same: "scale out",
    a_disturbed_scale_in_ends_the_same: "scale in",
    a_disturbed_replacement_ends_the_same: "replace a node",
    a_disturbed_deletion_during_a_change_ends_the_same: "delete in the middle of a change",
    a_disturbed_deletion_during_the_creation_ends_the_same: "delete in the middle of the creation",
    a_disturbed_repair_of_what_no_kubernetes_node_takes_ends_the_same: "unschedulable put right",
    a_disturbed_rebuild_of_two_of_three_ends_the_same: "two of three schemas dropped",
    a_disturbed_move_of_the_database_ends_the_same: "another address of PostgreSQL",
    a_disturbed_call_off_of_unpublished_nodes_ends_the_same: "scale out called off unpublished",
    a_disturbed_call_off_of_a_lone_secret_ends_the_same: "scale out called off at once",
    a_disturbed_call_off_of_a_scale_out_ends_the_same: "scale out called off",
    a_disturbed_call_off_of_a_scale_in_ends_the_same: "scale in called off",
    a_disturbed_upgrade_that_is_taken_back_ends_the_same: "upgrade taken back",
    a_disturbed_upgrade_after_a_pause_ends_the_same: "upgrade after a pause",
}
