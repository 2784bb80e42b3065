//! Runs every case on both sides and compares what they saw.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tokio::runtime::{Builder, Runtime};

use crate::broker::kafka::Kafka;
use crate::broker::sim::SimKafka;
use crate::database::postgres::Postgres;
use crate::database::sim::SimPostgres;
use crate::{log_cases, store_cases};

/// Cases that run on a real service at a time: most of them wait.
const AT_ONCE: usize = 8;
/// Longest real time of a case: above the longest time that a record may wait for its fate.
const CASE_LIMIT: Duration = Duration::from_secs(100);

/// A case: what it must see of a thing `D`, told in words that must be the same on both sides.
pub(crate) struct Case<D: ?Sized + 'static> {
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a D) -> LocalBoxFuture<'a, String>,
}

/// Makes cases of functions.
macro_rules! cases {
    ($($function:ident),* $(,)?) => {
        vec![$(crate::table::Case {
            name: stringify!($function),
            run: |on| Box::pin($function(on)),
        }),*]
    };
}
pub(crate) use cases;

/// What a case saw, or how it failed, and how long that took.
type Ended = (Result<String, String>, Duration);

pub(crate) fn run_log_cases() {
    let simulated = each(&log_cases::all(), |case| {
        paused().block_on(async {
            let broker = SimKafka::new();
            ended((case.run)(&broker)).await
        })
    });
    let cases = log_cases::all();
    let real = threads().block_on(async {
        let run = async |case: &log_cases::LogCase| {
            let broker = Kafka::new(case.name).await;
            let end = ended((case.run)(&broker)).await;
            broker.remove().await;
            (case.name, end)
        };
        stream::iter(&cases)
            .map(run)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    });
    compare("Kafka", &simulated, &real);
}

pub(crate) fn run_store_cases() {
    let simulated = each(&store_cases::all(), |case| {
        paused().block_on(async {
            let database = SimPostgres::new();
            ended((case.run)(&database)).await
        })
    });
    let cases = store_cases::all();
    let real = threads().block_on(async {
        let run = async |case: &store_cases::StoreCase| {
            let database = Postgres::new().await;
            let end = ended((case.run)(&database)).await;
            database.remove().await;
            (case.name, end)
        };
        stream::iter(&cases)
            .map(run)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    });
    compare("PostgreSQL", &simulated, &real);
}

fn each<D: ?Sized>(
    cases: &[Case<D>],
    run: impl Fn(&Case<D>) -> Ended,
) -> BTreeMap<&'static str, Ended> {
    cases.iter().map(|case| (case.name, run(case))).collect()
}

/// A panic is the failure of one case; the others go on.
pub(crate) async fn ended(case: LocalBoxFuture<'_, String>) -> Ended {
    let begin = Instant::now();
    let limited = tokio::time::timeout(CASE_LIMIT, case);
    let end = match AssertUnwindSafe(limited).catch_unwind().await {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(_)) => Err(format!("it does not end in {CASE_LIMIT:?}")),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "it panicked".to_owned())),
    };
    (end, begin.elapsed())
}

fn compare(
    service: &str,
    simulated: &BTreeMap<&'static str, Ended>,
    real: &BTreeMap<&'static str, Ended>,
) {
    assert_eq!(simulated.len(), real.len(), "every case ran on both sides");
    let mut wrong = Vec::new();
    for ((name, (simulated, quick)), (_, (real, slow))) in simulated.iter().zip(real) {
        println!("{name}: {quick:.1?} in memory, {slow:.1?} on {service}");
        match (simulated, real) {
            (Ok(one), Ok(other)) if one == other => {}
            (Ok(one), Ok(other)) => {
                wrong.push(format!("{name}:\n  in memory {one}\n  {service} {other}"));
            }
            (one, other) => {
                let told = |end: &Result<String, String>| match end {
                    Ok(_) => "as it should be".to_owned(),
                    Err(why) => why.clone(),
                };
                let (one, other) = (told(one), told(other));
                wrong.push(format!("{name}:\n  in memory: {one}\n  {service}: {other}"));
            }
        }
    }
    println!("{} cases on {service} and in memory", real.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

pub(crate) fn paused() -> Runtime {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    runtime.expect("a runtime of one thread")
}

fn threads() -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build();
    runtime.expect("a runtime of some threads")
}
