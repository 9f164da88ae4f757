//! `coffer console`

use serde_json::{Value, json};

use crate::node::Node;

fn sessions() -> Value {
    json!({"sessions": [
        {"id": "3f2a91c0", "read_only": true, "opened_by": "uid 0, process 7", "opened_at": 0, "used_at": 60_000, "ends_at": 1_860_000},
    ]})
}

const TABLE: &str = "\
ID        MAY   OPENED                USED                  ENDS                  OPENED BY
3f2a91c0  look  1970-01-01T00:00:00Z  1970-01-01T00:01:00Z  1970-01-01T00:31:00Z  uid 0, process 7
";

#[test]
fn a_link_is_all_that_it_prints() {
    let link = json!({"url": "http://127.0.0.1:8443/login#code", "seconds_left": 60});
    let node = Node::answering([("POST /v1/console/links", 200, link)]);
    let ran = node.run(&["console", "--read-only"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "http://127.0.0.1:8443/login#code\n"));
    assert_eq!(ran.stderr, "note: the link opens one session within 60 seconds\n");
    let asked = ("POST /v1/console/links".to_owned(), json!({"read_only": true}));
    assert_eq!(node.asked(), [asked]);
}

#[test]
fn sessions_are_shown_and_ended() {
    let none = json!({"sessions": []});
    let node = Node::answering([
        ("GET /v1/console/sessions", 200, sessions()),
        ("DELETE /v1/console/sessions/a%2Fb", 200, sessions()),
        ("DELETE /v1/console/sessions", 200, none),
    ]);
    assert_eq!(node.run(&["console", "sessions"]).stdout, TABLE);
    assert_eq!(node.run(&["console", "sessions", "--end", "a/b"]).stdout, TABLE);
    assert_eq!(node.run(&["console", "sessions", "--end-all"]).stdout, "no sessions\n");
    assert_eq!(node.run(&["console", "sessions", "--end", "a", "--end-all"]).code, 2);
}
