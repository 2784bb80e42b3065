//! Nodes with a deliberate mistake: the histories must show it. A check that cannot fail proves nothing.

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use kvcluster_suite::fault::{Fault, Plan};
use kvcluster_suite::history::porcupine::Porcupine;
use kvcluster_suite::history::resolve;
use kvcluster_suite::history::verdict::{by_key, judge};

use crate::campaign::run;
use crate::support::{from_the_log, whole_store};

/// Most histories until a mistake must have shown.
const HISTORIES: usize = 20;

/// The mistakes that real nodes can show in so few histories, each with the faults that bring it to light. The others are
/// the business of the exploration and the simulation: they need a record or a moment that real parts seldom give.
const MISTAKES: [(&str, &[Fault]); 4] = [
    (
        "ReadWithoutLease",
        &[Fault::LeaderPaused, Fault::CutFromKafka],
    ),
    (
        "EpochUnchecked",
        &[
            Fault::LeaderPaused,
            Fault::CutFromKafka,
            Fault::KafkaAnswersLost,
        ],
    ),
    ("TombstonesDropped", &[Fault::LeaderKilled]),
    (
        "ResumesOneLater",
        &[Fault::LeaderKilled, Fault::AllNodesKilled],
    ),
];

#[test]
fn mistakes_are_noticed() -> Result<()> {
    let porcupine = Porcupine::build()?;
    let noticed = MISTAKES.iter().try_for_each(|(mistake, faults)| {
        let (after, why) =
            notice(mistake, faults, &porcupine).with_context(|| format!("mistake {mistake}"))?;
        println!(
            "histories: {mistake} is noticed in history {after}: {}",
            why.lines().next().unwrap_or_default()
        );
        Ok(())
    });
    from_the_log(None)?;
    whole_store()?;
    noticed
}

/// Runs histories until one is wrong: which, and how.
fn notice(mistake: &str, faults: &[Fault], porcupine: &Porcupine) -> Result<(usize, String)> {
    from_the_log(Some(mistake))?;
    let mut rng = Rng::with_seed(7);
    for number in 0..HISTORIES {
        // A mistake may also keep a store from ever being whole.
        let lab = match whole_store() {
            Ok(lab) => lab,
            Err(error) => return Ok((number, format!("{error:#}"))),
        };
        let plan = Plan::new(faults[number % faults.len()], &mut rng);
        let name = format!("{mistake}{}.{number}", std::process::id());
        let history = match run(&lab, name, vec![plan], rng.u64(..)) {
            Ok(history) => history,
            Err(error) => return Ok((number + 1, format!("{error:#}"))),
        };
        let changes = by_key(resolve::changes(lab.kafka()?, &lab.names().log_topic())?);
        if let Err(error) = judge(&history.name, &history.events, &changes, porcupine) {
            return Ok((number + 1, format!("{error:#}")));
        }
    }
    bail!("{HISTORIES} histories look right")
}
