//! Kubernetes events: one for each step and for each change of `Ready`, none for what stays as it is.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};
use tracing::debug;

use crate::observe::kubernetes::call;
use crate::status::cut;

/// The API server refuses longer notes.
const NOTE_BYTES_MAX: usize = 1_000;

/// Publishes an event. A failure is not worth failing a pass for: a namespace that is being deleted takes no events.
pub(super) async fn publish(
    recorder: &Recorder,
    about: &ObjectReference,
    type_: EventType,
    reason: &str,
    note: &str,
) {
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(cut(note, NOTE_BYTES_MAX)),
        action: reason.to_owned(),
        secondary: None,
    };
    if let Err(error) = call("publish an event", recorder.publish(&event, about)).await {
        debug!(%error, reason, "no event");
    }
}
