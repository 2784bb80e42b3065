//! Each field of the spec, found in the CRD's own schema: a change of it has an effect, or is refused, or is known to act on the
//! operator alone. Taken back, everything is as before.

use kube::CustomResourceExt;
use kvcluster_crds::v1alpha1::KvCluster;
use serde_json::{Map, Value, json};

use super::model::Model;
use crate::cluster::Target;
use crate::fixtures::cluster;
use crate::plan::Step;

/// Read by the operator in every pass, and by nobody else: nothing is written for them.
const OF_THE_OPERATOR: [&str; 8] = [
    "deletion.giveUpSeconds",
    "paused",
    "postgres.instances",
    "rebalance.maxConcurrentMoves",
    "rebalance.mode",
    "replacement.afterSeconds",
    // Three replicas on three nodes: whatever the ring, everybody has everything.
    "ring.loadFactorPercent",
    "ring.virtualNodes",
];

/// Values of what is more than a number or a word.
fn special(path: &str) -> Option<Value> {
    Some(match path {
        "kafka.bootstrapServers" => json!("kafka-2:9092"),
        "image" => json!("image:2"),
        "resources" => json!({ "limits": { "memory": "1Gi" } }),
        "service.nodePort" => json!(30_080),
        "service.annotations" | "scheduling.nodeSelector" => json!({ "some": "thing" }),
        "scheduling.tolerations" => json!([{ "key": "store", "operator": "Exists" }]),
        "postgres.schemaPrefix" => json!("kw"),
        "postgres.instances" => {
            json!([{ "name": "main", "adminUrlSecret": { "name": "admin", "key": "other" } }])
        }
        _ => return None,
    })
}

fn leaves(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    match schema["properties"].as_object() {
        Some(fields) if path.is_empty() || special(path).is_none() => {
            for (name, field) in fields {
                let path = [path, name].join(".");
                leaves(field, path.trim_start_matches('.'), found);
            }
        }
        _ => found.push((path.to_owned(), schema.clone())),
    }
}

/// Another value than `now`, as the schema allows.
fn other(path: &str, schema: &Value, now: &Value) -> Value {
    if let Some(value) = special(path) {
        return value;
    }
    if let Some(values) = schema["enum"].as_array() {
        let mut others = values.iter().filter(|value| *value != now);
        return others.next().expect("two values").clone();
    }
    match schema["type"].as_str() {
        Some("boolean") => json!(!now.as_bool().expect("a default")),
        Some("integer") => {
            let now = now.as_i64().expect("a default");
            // The schema's limits are numbers with a point.
            let is_most = schema["maximum"].as_f64() == json!(now).as_f64();
            json!(if is_most { now - 1 } else { now + 1 })
        }
        _ => panic!("{path} needs a value here: {schema}"),
    }
}

fn set(spec: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(spec.insert(path.to_owned(), value)),
        Some((first, rest)) => {
            let part = spec.entry(first).or_insert_with(|| json!({}));
            set(part.as_object_mut().expect("an object"), rest, value);
        }
    }
}

fn with(cluster: &KvCluster, path: &str, value: Value) -> KvCluster {
    let mut all = serde_json::to_value(cluster).expect("JSON");
    let spec = all["spec"].as_object_mut().expect("a spec");
    set(spec, path, value);
    if path == "service.nodePort" {
        set(spec, "service.type", json!("NodePort"));
    }
    serde_json::from_value(all).expect("the schema allows it")
}

fn everything(model: &mut Model) -> String {
    let topics = &model.kafka().topics;
    let topics = format!("{topics:?}");
    let finalizer = model.finalizer;
    let objects = model.objects();
    format!(
        "{topics} {finalizer} {:?} {:?} {:?}",
        objects.stateful_sets, objects.services, objects.budgets
    )
}

#[test]
fn every_field_has_an_effect_or_is_refused_and_none_is_left_when_it_is_unset() {
    let crd = serde_json::to_value(KvCluster::crd()).expect("JSON");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut fields = Vec::new();
    leaves(&schema["properties"]["spec"], "", &mut fields);
    assert!(fields.len() > 30, "{fields:#?}");
    let old = cluster().build();
    let spec = serde_json::to_value(&old.spec).expect("JSON");
    let (mut idle, mut fixed) = (Vec::new(), Vec::new());
    for (path, schema) in &fields {
        let now = path.split('.').fold(&spec, |part, name| &part[name]);
        let changed = with(&old, path, other(path, schema, now));
        assert_ne!(changed, old, "{path}");
        if changed.validate_cel_update(&old).is_err() {
            fixed.push(path.as_str());
            continue;
        }
        changed.validate_cel().expect(path);
        let mut model = Model::converged(cluster());
        let before = everything(&mut model);
        let is_refused = Target::of(&changed).is_err();
        model.cluster = cluster().with(|cluster| *cluster = changed);
        let plan = model.plan();
        let has_effect = !plan.steps.is_empty() || !plan.is_ready() || is_refused;
        if !has_effect {
            idle.push(path.as_str());
        }
        model.live();
        model.cluster = cluster();
        model.live();
        assert!(model.plan().is_ready(), "{path}");
        if path != "nodes" {
            assert_eq!(everything(&mut model), before, "{path} is unset");
        }
        let restarted = |step: &&Step| matches!(step, Step::RestartPod { .. });
        assert_eq!(model.done.iter().filter(restarted).count() % 3, 0, "{path}");
    }
    assert_eq!(fixed, ["postgres.schemaPrefix", "replication", "slots"]);
    assert_eq!(idle, OF_THE_OPERATOR);
}
