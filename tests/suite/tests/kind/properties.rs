//! Every property of the custom resource is changed, unset, made bad and good again on a store that lives: it takes effect, and the
//! store is then as if it had been made so; or it is refused with a sentence, by the API server or by a condition, and all is well
//! once it is taken back. Each time `kubectl wait --for=condition=Ready` returns, the edit is served.
//!
//! A run takes some properties in their turn, `KVCLUSTER_LONG` all, and `KVCLUSTER_PROPERTY=ring` those whose path begins so.

#[path = "properties/store.rs"]
mod store;
#[path = "properties/table.rs"]
mod table;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::{Value, json};

use self::store::{Store, differences};
use self::table::{Bad, Good, Property, table};
use crate::support::{Own, lab, now_seconds};

/// Properties in a run, and random edits after them; and in a long run.
const PER_RUN: usize = 3;
const EDITS: usize = 5;
const EDITS_LONG: usize = 300;
/// Takes only the properties whose path begins with this.
const ONLY: &str = "KVCLUSTER_PROPERTY";

#[test]
fn the_table_has_every_property() -> Result<()> {
    let crd = include_str!("../../../../crds/yaml/kvcluster.yaml");
    let crd: Value = serde_yaml::from_str(crd).context("the CRD is YAML")?;
    let versions = crd["spec"]["versions"].as_array().context("versions")?;
    ensure!(versions.len() == 1, "the table is for one version");
    let spec = &versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut paths = BTreeSet::new();
    leaves(spec, &mut Vec::new(), &mut paths);
    let known: BTreeSet<String> = table()
        .into_iter()
        .map(|property| property.path.to_owned())
        .collect();
    assert_eq!(paths, known);
    Ok(())
}

/// Paths of all properties that have none below them.
fn leaves(schema: &Value, path: &mut Vec<String>, into: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        into.insert(path.join("."));
        return;
    };
    for (name, schema) in properties {
        path.push(name.clone());
        leaves(schema, path, into);
        path.pop();
    }
}

#[test]
fn every_property_takes_effect_or_is_refused() -> Result<()> {
    let (lab, kubectl) = lab()?;
    let own = Own::new(&kubectl, "suite-edits")?;
    own.admin_secret("second", "postgres")?;
    let store = Store::make(&lab, &own, "edited", &json!({}))?;
    let is_long = std::env::var_os("KVCLUSTER_LONG").is_some();
    let mut edits = 0;
    for property in chosen(is_long)? {
        edits += sweep(&store, &property).with_context(|| property.path)?;
    }
    let random = if is_long { EDITS_LONG } else { EDITS };
    at_random(&store, random)?;
    println!(
        "properties: {edits} edits in turn and {random} at random; whenever Ready was true, they were served"
    );
    Ok(())
}

/// Those of this run.
fn chosen(is_long: bool) -> Result<Vec<Property>> {
    let all = table();
    if let Some(only) = std::env::var_os(ONLY) {
        let only = only.to_string_lossy();
        let chosen = all
            .into_iter()
            .filter(|property| property.path.starts_with(&*only));
        let chosen: Vec<Property> = chosen.collect();
        ensure!(!chosen.is_empty(), "{ONLY}: no property {only:?}");
        return Ok(chosen);
    }
    if is_long {
        return Ok(all);
    }
    let count = all.len();
    let first = usize::try_from(now_seconds()?)? % count;
    let turn = all.into_iter().cycle().skip(first);
    Ok(turn.take(PER_RUN).collect())
}

/// Changes, unsets, spoils and mends one property; how many edits that were.
fn sweep(store: &Store<'_>, property: &Property) -> Result<usize> {
    let path = property.path;
    let (base, before) = (store.value(path)?, store.looks()?);
    let mut edits = 0;
    if let Good::Taken(good) | Good::Inside(good) | Good::Held(good) = &property.good {
        store.edit(&set(path, good))?;
        store.expect_served()?;
        let changed = store.looks()?;
        let is_seen = changed != before;
        let should_be = matches!(property.good, Good::Taken(_));
        ensure!(
            is_seen == should_be,
            "its effect on what was made: {is_seen}"
        );
        if !matches!(property.good, Good::Held(_)) {
            let fresh = store.sibling(&set(path, good))?;
            let others = differences(&store.looks()?, &fresh.looks()?);
            fresh.delete()?;
            ensure!(
                others.is_empty(),
                "{path} = {good}, and a fresh store: {others:#?}"
            );
        }
        store.edit(&set(path, &base))?;
        store.expect_served()?;
        let others = differences(&store.looks()?, &before);
        ensure!(
            others.is_empty(),
            "{path} taken back, and before: {others:#?}"
        );
        edits += 2;
    }
    match &property.bad {
        Bad::Refused(bad, why) => {
            let refusal = store
                .edit(&set(path, bad))
                .err()
                .with_context(|| format!("{path} = {bad} is taken"))?;
            let refusal = format!("{refusal:#}");
            ensure!(refusal.contains(why), "{path} = {bad}: {refusal}");
        }
        Bad::Stops(bad) => {
            store.edit(&set(path, bad))?;
            let why = store.expect_stopped()?;
            println!("properties: {path} = {bad}: {why}");
            store.edit(&set(path, &base))?;
            store.expect_served()?;
            let others = differences(&store.looks()?, &before);
            ensure!(others.is_empty(), "{path} mended, and before: {others:#?}");
            edits += 2;
        }
    }
    Ok(edits)
}

/// Edits one after the other, some of several properties at once, each waited for.
fn at_random(store: &Store<'_>, edits: usize) -> Result<()> {
    let seed = now_seconds()?;
    println!("properties: random edits with seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let goods: Vec<(&str, Value)> = table()
        .into_iter()
        .filter_map(|property| match property.good {
            Good::Taken(good) | Good::Inside(good) => Some((property.path, good)),
            // Another edit would wait, and Ready with it.
            Good::Held(_) | Good::Fixed => None,
        })
        .collect();
    let usual = |path: &str| store.value(path).unwrap_or(Value::Null);
    let base: Vec<Value> = goods.iter().map(|(path, _)| usual(path)).collect();
    for number in 0..edits {
        let mut edit = json!({});
        for _ in 0..rng.usize(1..4) {
            let which = rng.usize(..goods.len());
            let (path, good) = &goods[which];
            let value = if rng.bool() { good } else { &base[which] };
            merge(&mut edit, set(path, value));
        }
        store.edit(&edit)?;
        store
            .expect_served()
            .with_context(|| format!("edit {number}, seed {seed}: {edit}"))?;
    }
    Ok(())
}

/// A merge patch of the spec that gives one property a value.
fn set(path: &str, value: &Value) -> Value {
    path.rsplit('.')
        .fold(value.clone(), |inner, name| json!({ name: inner }))
}

fn merge(into: &mut Value, other: Value) {
    match (into, other) {
        (Value::Object(into), Value::Object(other)) => {
            for (name, value) in other {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, other) => *into = other,
    }
}
