//! The classic routes, to the letter: every status, every body, every limit.

use anyhow::{Context, Result};
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::http::{Answer, Connection, once};
use kvcluster_suite::lab::Lab;
use kvcluster_suite::percent::encode;

use crate::support::empty_store;

/// Longest key, bytes.
const KEY_MAX: usize = 2048;
/// Longest value, bytes.
const VALUE_MAX: usize = 1 << 20;

struct Store(Connection);

impl Store {
    fn open() -> Result<Self> {
        Ok(Self(Connection::open(Lab::local()?.service()?)?))
    }

    fn ask(&mut self, method: &str, target: &str) -> Result<Answer> {
        let shown = &target[..target.len().min(60)];
        let answer = self
            .0
            .request(method, target, &[])
            .with_context(|| format!("{method} {shown}"));
        if !self.0.is_usable() {
            self.0 = Connection::open(Lab::local()?.service()?)?;
        }
        answer
    }

    #[track_caller]
    fn expect(&mut self, method: &str, target: &str, status: u16, body: &str) {
        let answer = self.ask(method, target).expect("an answer");
        let shown = &target[..target.len().min(60)];
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, body),
            "{method} {shown}"
        );
    }

    #[track_caller]
    fn expect_status(&mut self, method: &str, target: &str, status: u16) -> Answer {
        let answer = self.ask(method, target).expect("an answer");
        let shown = &target[..target.len().min(60)];
        assert_eq!(answer.status, status, "{method} {shown}: {}", answer.text());
        answer
    }
}

#[test]
fn a_key_lives_from_put_to_delete() -> Result<()> {
    empty_store()?;
    let mut store = Store::open()?;
    store.expect("GET", "/key/life", 404, "Key not found");
    store.expect("PUT", "/key/life?value=1", 200, "PUT success");
    store.expect("GET", "/key/life", 200, "1");
    store.expect("PUT", "/key/life?value=2", 200, "PUT success");
    store.expect("GET", "/key/life", 200, "2");
    store.expect("DELETE", "/key/life", 200, "DELETE success");
    store.expect("GET", "/key/life", 404, "Key not found");
    store.expect("DELETE", "/key/life", 200, "DELETE success");
    Ok(())
}

#[test]
fn values_are_taken_as_they_are_meant() -> Result<()> {
    empty_store()?;
    let mut store = Store::open()?;
    store.expect("PUT", "/key/v", 400, "Missing 'value' parameter");
    store.expect("PUT", "/key/v?other=1", 400, "Missing 'value' parameter");
    let rows = [
        ("value=", ""),
        ("value", ""),
        ("value=first&value=second", "first"),
        ("other=1&value=x", "x"),
        ("value=a+b", "a b"),
        ("value=a%2Bb", "a+b"),
        ("value=a%20b", "a b"),
        ("value=YWJj==", "YWJj=="),
        ("value=a%26b%23c%3Dd", "a&b#c=d"),
        ("value=a%00b", "a\0b"),
        ("value=%F0%9F%98%80%C3%A9", "\u{1F600}é"),
        ("value=%22%5C%0A", "\"\\\n"),
        ("value=DELETE", "DELETE"),
    ];
    for (query, value) in rows {
        store.expect("PUT", &format!("/key/v?{query}"), 200, "PUT success");
        store.expect("GET", "/key/v", 200, value);
    }
    Ok(())
}

#[test]
fn keys_are_decoded_and_never_cut() -> Result<()> {
    empty_store()?;
    let mut store = Store::open()?;
    let longest = "k".repeat(KEY_MAX);
    let keys = [
        "a b",
        "a/b",
        "a+b",
        "ключ",
        "a\0b",
        "?&=#%",
        "{tag}x",
        "\u{1F600}",
        ".",
        "..",
        &longest,
    ];
    for key in keys {
        let target = format!("/key/{}", encode(key.as_bytes()).replace('.', "%2E"));
        store.expect(
            "PUT",
            &format!("{target}?value={}", encode(key.as_bytes())),
            200,
            "PUT success",
        );
        store.expect("GET", &target, 200, key);
    }
    // A plus sign in a path is itself; only in a form's value it is a space.
    store.expect("GET", "/key/a+b", 200, "a+b");
    let all: Rows = keys
        .iter()
        .map(|key| ((*key).to_owned(), (*key).to_owned()))
        .collect();
    check::expect_same(&check::scan(Lab::local()?.service()?)?, &all)
}

#[test]
fn limits_refuse_and_do_not_cut() -> Result<()> {
    empty_store()?;
    let mut store = Store::open()?;
    let too_long = "k".repeat(KEY_MAX + 1);
    for (method, query) in [("PUT", "?value=1"), ("GET", ""), ("DELETE", "")] {
        store.expect_status(method, &format!("/key/{too_long}{query}"), 413);
    }
    let largest = "v".repeat(VALUE_MAX);
    store.expect(
        "PUT",
        &format!("/key/large?value={largest}"),
        200,
        "PUT success",
    );
    store.expect("GET", "/key/large", 200, &largest);
    // The same length as bytes, three times as long on the wire.
    let wide = "%C3%A9".repeat(VALUE_MAX / 2);
    store.expect(
        "PUT",
        &format!("/key/wide?value={wide}"),
        200,
        "PUT success",
    );
    store.expect("GET", "/key/wide", 200, &"é".repeat(VALUE_MAX / 2));
    let answer = store.expect_status("PUT", &format!("/key/large?value={largest}v"), 413);
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    store.expect("GET", "/key/large", 200, &largest);
    Ok(())
}

#[test]
fn what_cannot_be_meant_is_refused() -> Result<()> {
    empty_store()?;
    let mut store = Store::open()?;
    for (method, query) in [("PUT", "?value=1"), ("GET", ""), ("DELETE", "")] {
        store.expect_status(method, &format!("/key/{query}"), 400);
        for key in ["%zz", "a%", "a%4"] {
            store.expect_status(method, &format!("/key/{key}{query}"), 400);
        }
        store.expect_status(method, &format!("/key/a/b{query}"), 404);
    }
    for value in ["%zz", "a%", "a%4"] {
        store.expect_status("PUT", &format!("/key/a?value={value}"), 400);
    }
    // Keys and values of the classic routes are text, or /scan could not give them back.
    store.expect_status("PUT", "/key/%FF?value=1", 400);
    store.expect_status("PUT", "/key/a?value=%FF", 400);
    store.expect("GET", "/scan", 200, "{}");
    for path in ["/", "/keys", "/key", "/scan/x", "/KEY/a"] {
        store.expect_status("GET", path, 404);
    }
    Ok(())
}

#[test]
fn methods_are_named() -> Result<()> {
    empty_store()?;
    let mut store = Store::open()?;
    let allowed = |answer: &Answer| {
        let allow = answer.header("allow").unwrap_or_default().to_owned();
        let mut methods: Vec<String> = allow.split(',').map(|m| m.trim().to_owned()).collect();
        methods.sort();
        methods
    };
    for method in ["POST", "PATCH"] {
        let answer = store.expect_status(method, "/key/a", 405);
        assert_eq!(
            allowed(&answer),
            ["DELETE", "GET", "HEAD", "OPTIONS", "PUT"],
            "{method}"
        );
        let answer = store.expect_status(method, "/scan", 405);
        assert_eq!(allowed(&answer), ["GET", "HEAD", "OPTIONS"], "{method}");
    }
    let answer = store.expect_status("OPTIONS", "/key/a", 204);
    assert_eq!(
        allowed(&answer),
        ["DELETE", "GET", "HEAD", "OPTIONS", "PUT"]
    );
    store.expect("HEAD", "/key/a", 404, "");
    store.expect("PUT", "/key/a?value=12345", 200, "PUT success");
    let answer = store.expect_status("HEAD", "/key/a", 200);
    assert_eq!(answer.header("content-length"), Some("5"));
    store.expect("GET", "/key/a", 200, "12345");
    Ok(())
}

#[test]
fn every_node_answers_for_the_whole_cluster() -> Result<()> {
    let lab = empty_store()?;
    let urls = lab.urls()?;
    store_is(&urls, &Rows::new())?;
    let mut expected = Rows::new();
    for number in 0..100 {
        let (key, value) = (format!("key-{number}"), format!("value {number}"));
        let writer = &urls[number % urls.len()];
        let target = kvcluster_suite::load::put_target(&key, &value);
        assert_eq!(once(writer, "PUT", &target)?.text(), "PUT success");
        for reader in &urls {
            assert_eq!(
                once(reader, "GET", &format!("/key/{key}"))?.text(),
                value,
                "{reader}"
            );
        }
        expected.insert(key, value);
    }
    store_is(&urls, &expected)
}

fn store_is(urls: &[String], expected: &Rows) -> Result<()> {
    urls.iter()
        .try_for_each(|url| check::expect_same(&check::scan(url)?, expected))
}
