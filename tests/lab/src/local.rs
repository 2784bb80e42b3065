//! The store without Kubernetes: Kafka, PostgreSQL and store nodes as plain processes on 127.0.0.1.
//!
//! `<run>/local/lab.json` names every part with what it takes to start it again, so that a test can kill one and bring
//! it back. This module decides what runs; [`kafka`] and [`postgres`] know how.

pub mod kafka;
pub mod parts;
pub mod postgres;

use anyhow::{Result, bail};

use crate::args::LocalOptions;
use crate::build;
use crate::cache::{self, Layout};
use crate::local::parts::{Lab, Part};
use crate::machine::check_ports;
use crate::progress::{Progress, seconds};

/// Brings up what `options` ask for and leaves alone what runs already.
pub fn up(layout: &Layout, progress: &Progress, options: &LocalOptions) -> Result<()> {
    let _lock = layout.lock()?;
    let mut lab = Lab::load(layout)?;
    services(layout, progress, &mut lab, options.brokers)?;
    let kafka = kafka::bootstrap(options.brokers);
    progress.note(&format!("kafka     {kafka}"));
    progress.note(&format!("postgres  {}", postgres::URL));
    progress.note(&format!("ready after {}", seconds(progress.elapsed())));
    Ok(())
}

fn services(layout: &Layout, progress: &Progress, lab: &mut Lab, brokers: u16) -> Result<()> {
    let running = lab
        .parts
        .iter()
        .filter(|part| part.name.starts_with("kafka-"))
        .count();
    if running != 0 && running != usize::from(brokers) {
        bail!("local runs with {running} Kafka brokers already: `cargo lab down` first");
    }
    let jars = build::kafka::jars(layout, progress)?;
    let programs = postgres::programs(layout, progress)?;
    let kafka_parts = kafka::parts(layout, &jars, brokers);
    let postgres_part = postgres::part(layout, &programs);
    check_new_ports(lab, kafka_parts.iter().chain([&postgres_part]))?;
    progress.step("start Kafka and PostgreSQL", |step| {
        step.detail("Kafka");
        for part in kafka_parts {
            bring(layout, lab, part, |part| {
                kafka::prepare(layout, part, brokers)
            })?;
        }
        step.detail("PostgreSQL");
        bring(layout, lab, postgres_part, |part| {
            postgres::prepare(layout, part, &programs)
        })?;
        step.detail("wait until PostgreSQL answers");
        lab.watch(
            "postgres",
            || Ok(postgres::answers(&programs).then_some(())),
        )?;
        step.detail("wait until Kafka answers");
        lab.watch("kafka-0", || Ok(kafka::answers(brokers).then_some(())))
    })
}

/// Starts a part if it does not run; `prepare` makes its data the first time.
fn bring(
    layout: &Layout,
    lab: &mut Lab,
    part: Part,
    prepare: impl FnOnce(&Part) -> Result<()>,
) -> Result<()> {
    match lab.parts.iter_mut().find(|known| known.name == part.name) {
        Some(known) if known.is_running() => return Ok(()),
        Some(known) => known.start()?,
        None => {
            prepare(&part)?;
            lab.parts.push(part);
            lab.parts
                .last_mut()
                .expect("it was pushed just now")
                .start()?;
        }
    }
    lab.save(layout)
}

fn check_new_ports<'a>(lab: &Lab, parts: impl Iterator<Item = &'a Part>) -> Result<()> {
    let new = parts.filter(|part| lab.parts.iter().all(|known| known.name != part.name));
    let wanted: Vec<_> = new
        .flat_map(|part| part.ports.iter().map(|port| (*port, part.name.clone())))
        .collect();
    check_ports(&wanted)
}

/// Starts a part that was killed, as it was started before.
pub fn start_part(layout: &Layout, progress: &Progress, name: &str) -> Result<()> {
    let _lock = layout.lock()?;
    let mut lab = Lab::load(layout)?;
    let part = lab.part_mut(name)?;
    if part.is_running() {
        return Ok(());
    }
    progress.step(&format!("start {name}"), |_| part.start())?;
    lab.save(layout)
}

/// Sends a signal to a part; after `KILL` it returns when the process is gone.
pub fn kill_part(layout: &Layout, name: &str, signal: &str) -> Result<()> {
    let _lock = layout.lock()?;
    Lab::load(layout)?.part_mut(name)?.signal(signal)
}

/// Stops every part and removes its data.
pub fn down(layout: &Layout, progress: &Progress) -> Result<()> {
    let _lock = layout.lock()?;
    let lab = Lab::load(layout)?;
    if !lab.parts.is_empty() {
        progress.step("stop the local processes", |step| {
            lab.parts.iter().rev().try_for_each(|part| {
                step.detail(&part.name);
                part.stop()
            })
        })?;
    }
    postgres::remove_data(layout)?;
    cache::remove(&layout.run("local"))
}
