use proptest::prelude::*;

use super::*;

struct Run {
    out: String,
    queries: Vec<String>,
}

/// Rewrites `input` in pieces and claims every query that the output names.
fn run(input: &[u8], piece: usize, room: &Arc<Room>) -> Run {
    let aside = Arc::new(Aside::default());
    let mut rewriter = Rewriter::new(Arc::clone(&aside), Arc::clone(room));
    let mut out = Vec::new();
    for piece in input.chunks(piece) {
        rewriter.push(piece);
        out.append(&mut rewriter.out);
    }
    rewriter.finish();
    out.append(&mut rewriter.out);
    let out = String::from_utf8(out).expect("the tests send text");
    let numbers = out
        .lines()
        .filter_map(|line| line.strip_prefix("kvcluster-long-query: "));
    let queries = numbers.map(|number| {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, number.parse().expect("a header value"));
        let query = aside.claim(&mut headers);
        assert!(!headers.contains_key(HEADER));
        match query {
            Some(LongQuery::Whole(query)) => String::from_utf8_lossy(query.bytes()).into_owned(),
            other => format!("{other:?}"),
        }
    });
    Run {
        queries: queries.collect(),
        out,
    }
}

fn put(query: &str) -> String {
    format!("PUT /key/k?{query} HTTP/1.1\r\nHost: h\r\n\r\n")
}

#[test]
fn short_requests_pass_unchanged() {
    let text = "\r\nGET /key/a?value=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab\r\ncPUT /key/b HTTP/1.1\r\n\r\n";
    for piece in [1, 7, 1_000] {
        let run = run(text.as_bytes(), piece, &Arc::default());
        assert_eq!(run.out, text);
        assert!(run.queries.is_empty());
    }
}

#[test]
fn long_queries_are_set_aside_and_found_again() {
    let (first, second) = (
        "value=".to_owned() + &"a".repeat(100_000),
        "x".repeat(2_000_000),
    );
    let text = put(&first) + &put("value=short") + &put(&second);
    for piece in [1_000, 16_384, text.len()] {
        let run = run(text.as_bytes(), piece, &Arc::default());
        assert_eq!(run.queries, [first.clone(), second.clone()]);
        let short = |number: u32| {
            format!("PUT /key/k HTTP/1.1\r\nkvcluster-long-query: {number}\r\nHost: h\r\n\r\n")
        };
        assert_eq!(run.out, short(1) + &put("value=short") + &short(2));
    }
}

#[test]
fn a_body_is_never_taken_for_a_request() {
    let line = put(&"z".repeat(60_000));
    let body = format!(
        "POST /x HTTP/1.1\r\ncontent-LENGTH: {}\r\n\r\n{line}",
        line.len()
    );
    let whole = body.clone() + &line;
    let plain = run(whole.as_bytes(), 999, &Arc::default());
    assert!(plain.out.starts_with(&body));
    assert_eq!(plain.queries.len(), 1, "only the request after the body");
    for header in [
        "Transfer-Encoding: chunked",
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: +1",
        "Upgrade: x",
    ] {
        let text = format!("POST /x HTTP/1.1\r\n{header}\r\n\r\n{line}");
        let run = run(text.as_bytes(), 999, &Arc::default());
        assert_eq!(run.out, text, "{header}");
    }
}

#[test]
fn too_long_and_no_room_are_told_apart_and_keep_nothing() {
    let room = Arc::new(Room::default());
    let too_long = run(
        put(&"a".repeat(QUERY_BYTES_MAX + 1)).as_bytes(),
        16_384,
        &room,
    );
    assert_eq!(too_long.queries, ["Some(TooLong)"]);
    assert_eq!(room.used.load(Ordering::Relaxed), 0);
    assert!(room.reserve(ROOM_BYTES - 50_000));
    let no_room = run(put(&"a".repeat(60_000)).as_bytes(), 16_384, &room);
    assert_eq!(no_room.queries, ["Some(NoRoom)"]);
    assert_eq!(room.used.load(Ordering::Relaxed), ROOM_BYTES - 50_000);
    let fits = run(put(&"a".repeat(40_000)).as_bytes(), 16_384, &room);
    assert_eq!(fits.queries[0].len(), 40_000);
    assert_eq!(
        room.used.load(Ordering::Relaxed),
        ROOM_BYTES - 50_000,
        "given back"
    );
}

#[test]
fn a_number_of_the_clients_own_names_nothing() {
    let mut headers = HeaderMap::new();
    headers.insert(HEADER, "1".parse().expect("a header value"));
    assert!(Aside::default().claim(&mut headers).is_none());
    assert!(headers.is_empty());
}

#[test]
fn a_path_that_is_too_long_is_the_librarys_to_refuse() {
    let text = format!("GET /{} HTTP/1.1\r\n\r\n", "p".repeat(80_000));
    assert_eq!(run(text.as_bytes(), 4_096, &Arc::default()).out, text);
}

proptest! {
    #[test]
    fn short_input_of_any_shape_passes_unchanged(text in "[ -~\r\n]{0,2000}", piece in 1..300_usize) {
        prop_assert_eq!(run(text.as_bytes(), piece, &Arc::default()).out, text);
    }
}
