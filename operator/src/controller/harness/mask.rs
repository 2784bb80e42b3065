//! What differs from run to run, and means nothing.

use serde_json::{Value, json};

/// UIDs, versions and times, what is random, and the hashes over it.
pub(super) fn mask(value: &mut Value) {
    const MASKED: [&str; 13] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "lastTransitionTime",
        "generation",
        "observedGeneration",
        "kvcluster.dev/applied",
        "controller-revision-hash",
        "updateRevision",
        "logId",
        "data",
        "podIP",
    ];
    match value {
        Value::Object(fields) => {
            let is_log_id = fields.get("name") == Some(&json!("KVCLUSTER_LOG_ID"));
            for (name, field) in fields.iter_mut() {
                if MASKED.contains(&name.as_str()) || is_log_id && name == "value" {
                    *field = Value::Null;
                } else {
                    mask(field);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(mask),
        _ => {}
    }
}
