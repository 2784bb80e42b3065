//! An API server in memory: as much of it as the operator speaks to. Server-side apply knows one manager, which owns what it
//! applied last; that is all the operator's objects have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::faults::{Fault, Faults};
use super::mask::mask;
use crate::fixtures::now;

/// Plural, namespace and name of an object.
type Key = (String, String, String);

/// An API server; clones are the same.
#[derive(Clone)]
pub(super) struct ApiServer {
    state: Arc<Mutex<State>>,
    faults: Faults,
}

#[derive(Clone, Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    /// What was applied last, without status and with.
    applied: BTreeMap<(Key, bool), Value>,
    version: u64,
    uids: u64,
    late: Vec<Written>,
    /// How many objects of each name there were, kinds apart.
    made: BTreeMap<String, usize>,
    /// What reads see instead.
    stale: Option<BTreeMap<Key, Value>>,
    /// Writes of this kind are answered with this code.
    refused: Option<(String, u16)>,
    /// Whether lists come in the other order.
    reversed: bool,
}

/// A write on its way.
#[derive(Clone)]
struct Written {
    method: Method,
    place: Place,
    content: String,
    body: Value,
}

/// What a path of the API names.
#[derive(Clone)]
struct Place {
    plural: String,
    namespace: String,
    name: Option<String>,
    status: bool,
}

type Answer = Result<Value, (u16, &'static str)>;

impl ApiServer {
    pub(super) fn new(faults: &Faults) -> Self {
        Self {
            state: Arc::default(),
            faults: faults.clone(),
        }
    }

    /// A client of the operator: what it writes is counted and may go wrong.
    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.serve(request).await) }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let place = Place::of(request.uri().path());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let content = request.headers().get("content-type");
        let content = content.and_then(|text| text.to_str().ok()).unwrap_or("");
        let (method, content) = (request.method().clone(), content.to_owned());
        let body = request.into_body().collect_bytes().await;
        let body = serde_json::from_slice(&body.expect("a body in memory")).unwrap_or(Value::Null);
        // Events are told and not kept.
        if place.plural == "events" {
            return response(Ok(body));
        }
        if method == Method::GET {
            return response(self.lock().read(&place, &query));
        }
        let write = format!("{method} {} {}", place.plural, place.describe());
        let fault = self.faults.around(write);
        let written = Written {
            method,
            place,
            content,
            body,
        };
        let mut answer = Err((504, "Timeout"));
        if fault.is_none_or(Fault::takes_effect) {
            answer = self.lock().write(&written);
        } else if fault == Some(Fault::Late) {
            self.lock().late.push(written);
        }
        match fault {
            Some(Fault::KilledBefore | Fault::KilledAfter | Fault::Late) => self.faults.die().await,
            Some(Fault::Refused | Fault::AnswerLost) => response(Err((504, "Timeout"))),
            Some(Fault::Conflict) => response(Err((409, "Conflict"))),
            None => response(answer),
        }
    }

    /// What was held back arrives. Nobody hears the answer.
    pub(super) fn deliver_late(&self) {
        let mut state = self.lock();
        for written in std::mem::take(&mut state.late) {
            let _ = state.write(&written);
        }
    }

    /// Reads are answered by what was there then, until it is taken back.
    pub(super) fn be_stale(&self, then: Option<&Self>) {
        let then = then.map(|then| then.lock().objects.clone());
        self.lock().stale = then;
    }

    /// Objects of this kind cannot be written any more, until that is taken back: a quota, a lost right, an admission rule.
    pub(super) fn refuse(&self, plural: &str, code: Option<u16>) {
        self.lock().refused = code.map(|code| (plural.to_owned(), code));
    }

    /// Lists come in the other order from now on.
    pub(super) fn reverse_lists(&self) {
        self.lock().reversed = true;
    }

    /// Another server with the same content, for another operator.
    pub(super) fn fork(&self, faults: &Faults) -> Self {
        Self {
            state: Arc::new(Mutex::new(self.lock().clone())),
            faults: faults.clone(),
        }
    }

    /// All objects of a kind in the one namespace that there is.
    pub(super) fn all<K: DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        let state = self.lock();
        let all = state.objects.iter().filter(|((of, ..), _)| of == plural);
        all.map(|(_, object)| serde_json::from_value(object.clone()).expect("an object"))
            .collect()
    }

    /// Makes or replaces an object, as others than the operator do.
    pub(super) fn put<K: Serialize>(&self, plural: &str, object: &K) {
        let object = serde_json::to_value(object).expect("an object");
        let text = |field: &str| {
            let text = object["metadata"][field].as_str();
            text.unwrap_or_default().to_owned()
        };
        let key = (plural.to_owned(), text("namespace"), text("name"));
        self.lock().store(key, object);
    }

    /// Removes an object for good.
    pub(super) fn remove(&self, plural: &str, name: &str) {
        let mut state = self.lock();
        state
            .objects
            .retain(|(of, _, named), _| of != plural || named != name);
        state
            .applied
            .retain(|((of, _, named), _), _| of != plural || named != name);
    }

    /// Removes what belongs to an owner that is gone.
    pub(super) fn collect_garbage(&self) -> bool {
        let mut state = self.lock();
        let uids: Vec<Value> = state
            .objects
            .values()
            .map(|object| object["metadata"]["uid"].clone())
            .collect();
        let before = state.objects.len();
        state.objects.retain(|_, object| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_none_or(|owners| owners.iter().any(|owner| uids.contains(&owner["uid"])))
        });
        let State {
            objects, applied, ..
        } = &mut *state;
        applied.retain(|(key, _), _| objects.contains_key(key));
        objects.len() != before
    }

    /// How many objects of each name there were: none is replaced by another one without need.
    pub(super) fn made(&self) -> BTreeMap<String, usize> {
        self.lock().made.clone()
    }

    /// Everything, without what differs from run to run.
    pub(super) fn everything(&self) -> BTreeMap<String, Value> {
        let state = self.lock();
        let masked = state
            .objects
            .iter()
            .map(|((plural, namespace, name), object)| {
                let mut object = object.clone();
                mask(&mut object);
                let place = match namespace.as_str() {
                    "shop" => String::new(),
                    other => format!("@{other}"),
                };
                (format!("{plural}/{name}{place}"), object)
            });
        masked.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn of(path: &str) -> Self {
        if let Some(node) = path.strip_prefix("/api/v1/nodes/") {
            return Self {
                plural: "nodes".to_owned(),
                namespace: String::new(),
                name: Some(node.to_owned()),
                status: false,
            };
        }
        let mut parts = path.split('/').skip_while(|part| *part != "namespaces");
        let mut next = || parts.next().map(str::to_owned);
        next();
        let namespace = next().unwrap_or_default();
        let plural = next().unwrap_or_default();
        let (name, sub) = (next(), next());
        Self {
            plural,
            namespace,
            name,
            status: sub.as_deref() == Some("status"),
        }
    }

    fn describe(&self) -> String {
        let sub = if self.status { "/status" } else { "" };
        format!("{}{sub}", self.name.as_deref().unwrap_or_default())
    }

    fn key(&self) -> Key {
        let name = self.name.clone().unwrap_or_default();
        (self.plural.clone(), self.namespace.clone(), name)
    }
}

fn response(answer: Answer) -> Response<Body> {
    let (status, body) = match answer {
        Ok(body) => (200, body),
        Err((code, reason)) => (
            code,
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                    "reason": reason, "message": reason }),
        ),
    };
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    response
        .body(Body::from(body.to_string().into_bytes()))
        .expect("a response")
}

impl State {
    fn read(&self, place: &Place, query: &str) -> Answer {
        let objects = self.stale.as_ref().unwrap_or(&self.objects);
        if place.name.is_some() {
            let found = objects.get(&place.key());
            return found.cloned().ok_or((404, "NotFound"));
        }
        let wanted = labels(query);
        let fits = |object: &Value| {
            wanted
                .iter()
                .all(|(name, value)| object["metadata"]["labels"][name] == json!(value))
        };
        let mut items: Vec<&Value> = objects
            .iter()
            .filter(|((plural, namespace, _), object)| {
                *plural == place.plural
                    && (place.namespace.is_empty() || *namespace == place.namespace)
                    && fits(object)
            })
            .map(|(_, object)| object)
            .collect();
        if self.reversed {
            items.reverse();
        }
        Ok(json!({ "kind": "List", "apiVersion": "v1",
                   "metadata": { "resourceVersion": self.version.to_string() }, "items": items }))
    }

    fn write(&mut self, written: &Written) -> Answer {
        let Written {
            method,
            place,
            content,
            body,
        } = written;
        if let Some((plural, code)) = &self.refused
            && *plural == place.plural
        {
            return Err((*code, "Refused"));
        }
        match *method {
            Method::PATCH if content.contains("apply") => self.apply(place, body),
            Method::PATCH => self.merge(place, body),
            Method::DELETE => self.delete(place, body),
            _ => Err((405, "MethodNotAllowed")),
        }
    }

    fn apply(&mut self, place: &Place, body: &Value) -> Answer {
        let key = place.key();
        let live = self.objects.get(&key);
        if place.status && live.is_none() {
            return Err((404, "NotFound"));
        }
        fits_version(live, body)?;
        let mut object = live.cloned().unwrap_or_else(|| json!({}));
        let mark = (key.clone(), place.status);
        if let Some(before) = self.applied.get(&mark) {
            drop_fields(&mut object, before, body);
        }
        let mut body = body.clone();
        if let Some(metadata) = body["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
            metadata.insert("namespace".to_owned(), json!(key.1));
        }
        merge_into(&mut object, &body);
        self.applied.insert(mark, body);
        Ok(self.store(key, object))
    }

    fn merge(&mut self, place: &Place, body: &Value) -> Answer {
        let key = place.key();
        let live = self.objects.get(&key).ok_or((404, "NotFound"))?;
        fits_version(Some(live), body)?;
        let mut object = live.clone();
        let mut body = body.clone();
        if let Some(metadata) = body["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        merge_into(&mut object, &body);
        let finalizers = object["metadata"]["finalizers"].as_array();
        let is_held = finalizers.is_some_and(|list| !list.is_empty());
        if !object["metadata"]["deletionTimestamp"].is_null() && !is_held {
            self.objects.remove(&key);
            return Ok(object);
        }
        Ok(self.store(key, object))
    }

    /// What has a finalizer, and StatefulSets and pods, stand on until somebody lets them go.
    fn delete(&mut self, place: &Place, body: &Value) -> Answer {
        let key = place.key();
        let live = self.objects.get(&key).ok_or((404, "NotFound"))?;
        let uid = &body["preconditions"]["uid"];
        if !uid.is_null() && *uid != live["metadata"]["uid"] {
            return Err((409, "Conflict"));
        }
        let lingers = matches!(place.plural.as_str(), "statefulsets" | "pods");
        let at_once = body["gracePeriodSeconds"] == json!(0);
        if !lingers || at_once {
            self.applied.retain(|(of, _), _| *of != key);
            return Ok(self.objects.remove(&key).expect("just found"));
        }
        let mut object = live.clone();
        object["metadata"]["deletionTimestamp"] = json!(now());
        Ok(self.store(key, object))
    }

    fn store(&mut self, key: Key, mut object: Value) -> Value {
        let before = self.objects.get(&key);
        let same = before.is_some_and(|before| *before == object);
        if same {
            return object;
        }
        let spec_changed = before.is_none_or(|before| before["spec"] != object["spec"]);
        self.version += 1;
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            self.uids += 1;
            *self.made.entry(format!("{}/{}", key.0, key.2)).or_default() += 1;
            metadata["uid"] = json!(format!("uid-{}", self.uids));
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!(now());
        }
        metadata["resourceVersion"] = json!(self.version.to_string());
        if spec_changed {
            let generation = metadata["generation"].as_i64().unwrap_or(0);
            metadata["generation"] = json!(generation + 1);
        }
        self.objects.insert(key, object.clone());
        object
    }
}

fn fits_version(live: Option<&Value>, body: &Value) -> Result<(), (u16, &'static str)> {
    let wanted = &body["metadata"]["resourceVersion"];
    let version = live.map(|live| &live["metadata"]["resourceVersion"]);
    if wanted.is_null() || version == Some(wanted) {
        Ok(())
    } else {
        Err((409, "Conflict"))
    }
}

/// Takes away what was applied before and is not applied any more.
fn drop_fields(object: &mut Value, before: &Value, after: &Value) {
    let (Value::Object(fields), Value::Object(before)) = (object, before) else {
        return;
    };
    for (name, old) in before {
        match after.get(name) {
            None => drop(fields.remove(name)),
            Some(new) => {
                if let Some(field) = fields.get_mut(name) {
                    drop_fields(field, old, new);
                }
            }
        }
    }
}

fn merge_into(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(fields), Value::Object(patch)) => {
            for (name, value) in patch {
                if value.is_null() {
                    fields.remove(name);
                } else {
                    merge_into(fields.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (object, Value::Object(patch)) => {
            *object = json!({});
            merge_into(object, &Value::Object(patch.clone()));
        }
        (object, patch) => *object = patch.clone(),
    }
}

/// The labels of a query's selector.
fn labels(query: &str) -> Vec<(String, String)> {
    let decoded = query
        .replace("%3D", "=")
        .replace("%2C", ",")
        .replace("%2F", "/");
    let selector = decoded.split('&').find_map(|part| {
        let text = part.strip_prefix("labelSelector=")?;
        Some(text.to_owned())
    });
    let selector = selector.unwrap_or_default();
    let pairs = selector.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
