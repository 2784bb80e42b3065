//! The store without Kubernetes: Kafka, PostgreSQL and store nodes as plain processes on 127.0.0.1.
//!
//! `<run>/local/lab.json` names every part with what it takes to start it again, so that a test can kill one and bring
//! it back. This module decides what runs; [`kafka`], [`postgres`] and [`nodes`] know how.

pub mod cuts;
pub mod disks;
pub mod kafka;
pub mod nodes;
pub mod parts;
pub mod postgres;
pub mod scale;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::args::LocalOptions;
use crate::build::{self, own};
use crate::cache::{self, Layout};
use crate::local::parts::{Lab, Part};
use crate::machine::check_ports;
use crate::progress::{Progress, seconds};
use crate::smoke;

/// Brings up what `options` ask for and leaves alone what runs already.
pub fn up(layout: &Layout, progress: &Progress, options: &LocalOptions) -> Result<()> {
    // Before the lock: compiling may take minutes, and meanwhile others may kill and start parts.
    let programs = if options.only_services {
        PathBuf::new()
    } else {
        own::programs(layout, progress)?
    };
    let _lock = layout.lock(cache::LOCAL)?;
    let mut lab = Lab::load(layout)?;
    check_size(&lab, "kafka-", "Kafka brokers", options.brokers)?;
    if !options.only_services {
        check_size(&lab, "node-", "nodes", options.nodes)?;
    }
    services(layout, progress, &mut lab, options)?;
    if !options.only_services {
        progress.step("start the store", |step| {
            step.detail("topics, schemas, assignment");
            let parts = nodes::prepare(layout, &programs, options)?;
            check_new_ports(&lab, parts.iter())?;
            for part in parts {
                bring(layout, &mut lab, part, |_| Ok(()))?;
            }
            step.detail("wait until the nodes answer");
            store_answers(&lab)
        })?;
    }
    summary(progress, &lab, options.brokers);
    Ok(())
}

fn check_size(lab: &Lab, prefix: &str, what: &str, wanted: u16) -> Result<()> {
    let running = lab.count(prefix);
    if running != 0 && running != wanted {
        bail!(
            "local was begun with {running} {what}, and {wanted} are wanted: `cargo lab down` first"
        );
    }
    Ok(())
}

fn services(
    layout: &Layout,
    progress: &Progress,
    lab: &mut Lab,
    options: &LocalOptions,
) -> Result<()> {
    let (brokers, is_small) = (options.brokers, options.small_disks);
    let jars = build::kafka::jars(layout, progress)?;
    let programs = postgres::programs(layout, progress)?;
    let kafka_parts = kafka::parts(layout, &jars, brokers);
    let postgres_part = postgres::part(layout, &programs, is_small);
    check_new_ports(lab, kafka_parts.iter().chain([&postgres_part]))?;
    progress.step("start Kafka and PostgreSQL", |step| {
        step.detail("Kafka");
        for part in kafka_parts {
            bring(layout, lab, part, |part| {
                kafka::prepare(layout, part, brokers, is_small)
            })?;
        }
        step.detail("PostgreSQL");
        bring(layout, lab, postgres_part, |part| {
            postgres::prepare(layout, part, &programs, is_small)
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

/// Starts a part if it does not run, or runs a program that was built anew since; `prepare` makes its data the first time.
fn bring(
    layout: &Layout,
    lab: &mut Lab,
    mut part: Part,
    prepare: impl FnOnce(&Part) -> Result<()>,
) -> Result<()> {
    match lab.parts.iter_mut().find(|known| known.name == part.name) {
        Some(known) if known.is_running() && !known.is_outdated() => return Ok(()),
        Some(known) => {
            known.stop()?;
            part.start()?;
            *known = part;
        }
        None => {
            prepare(&part)?;
            part.start()?;
            lab.parts.push(part);
        }
    }
    lab.save(layout)
}

fn check_new_ports<'a>(lab: &Lab, parts: impl Iterator<Item = &'a Part>) -> Result<()> {
    let new = parts.filter(|part| lab.parts.iter().all(|known| known.name != part.name));
    let wanted = new.flat_map(|part| part.ports.iter().map(|port| (*port, part.name.clone())));
    check_ports(&wanted.collect::<Vec<_>>())
}

fn store_answers(lab: &Lab) -> Result<()> {
    let client = smoke::client();
    let nodes: Vec<&Part> = lab
        .parts
        .iter()
        .filter(|part| part.name.starts_with("node-"))
        .collect();
    for node in &nodes {
        let url = nodes::admin_url(node).context("a node has an admin port")? + "/readyz";
        lab.watch(&node.name, || Ok(smoke::is_ok(&client, &url).then_some(())))?;
    }
    let first = nodes
        .first()
        .and_then(|node| nodes::url(node))
        .context("there is a node")?;
    smoke::run(&first)
}

fn summary(progress: &Progress, lab: &Lab, brokers: u16) {
    progress.note(&format!("kafka     {}", kafka::bootstrap(brokers)));
    progress.note(&format!("postgres  {}", postgres::URL));
    for node in lab
        .parts
        .iter()
        .filter(|part| part.name.starts_with("node-"))
    {
        progress.note(&format!(
            "{:<9} {}",
            node.name,
            nodes::url(node).unwrap_or_default()
        ));
    }
    progress.note(&format!(
        "ready after {}; `cargo lab down` stops it",
        seconds(progress.elapsed())
    ));
}

/// Starts a part that was killed, as it was started before.
pub fn start_part(layout: &Layout, progress: &Progress, name: &str) -> Result<()> {
    let _lock = layout.lock(cache::LOCAL)?;
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
    let _lock = layout.lock(cache::LOCAL)?;
    Lab::load(layout)?.part_mut(name)?.signal(signal)
}

/// Stops the nodes and starts them with a program of that name, which stands beside their own, and with one more variable.
pub fn restart_nodes(layout: &Layout, program: &str, variable: Option<&str>) -> Result<()> {
    let _lock = layout.lock(cache::LOCAL)?;
    let mut lab = Lab::load(layout)?;
    let nodes = lab.parts.iter_mut();
    for node in nodes.filter(|part| part.name.starts_with("node-")) {
        node.stop()?;
        let file = PathBuf::from(&node.argv[0]).with_file_name(program);
        ensure!(file.exists(), "{} is not built", file.display());
        node.argv[0] = file.display().to_string();
        if let Some(variable) = variable {
            let (name, value) = variable
                .split_once('=')
                .context("a variable is NAME=VALUE")?;
            node.env.insert(name.to_owned(), value.to_owned());
        }
        node.start()?;
    }
    lab.save(layout)
}

/// Drops what a part sends to others, or the answers to it.
pub fn cut_part(layout: &Layout, name: &str, target: &str, answers: bool) -> Result<()> {
    let _lock = layout.lock(cache::LOCAL)?;
    cuts::cut(&mut Lab::load(layout)?, name, target, answers)
}

/// Fills the disk of a part, or makes room again.
pub fn fill_part(layout: &Layout, name: &str, undo: bool) -> Result<()> {
    let _lock = layout.lock(cache::LOCAL)?;
    let mut lab = Lab::load(layout)?;
    let folder = &lab.part_mut(name)?.cwd;
    if undo {
        return disks::make_room(folder);
    }
    println!("{} bytes are taken", disks::fill(folder)?);
    Ok(())
}

/// Stops every part and removes its data.
pub fn stop(layout: &Layout, progress: &Progress) -> Result<()> {
    let _lock = layout.lock(cache::LOCAL)?;
    let lab = Lab::load(layout)?;
    if !lab.parts.is_empty() {
        cuts::heal()?;
        progress.step("stop the local processes", |step| {
            lab.parts.iter().rev().try_for_each(|part| {
                step.detail(&part.name);
                part.stop()
            })
        })?;
        disks::unmount_below(&layout.run("local"))?;
        postgres::remove_data(layout)?;
    }
    cache::remove(&layout.run("local"))
}
