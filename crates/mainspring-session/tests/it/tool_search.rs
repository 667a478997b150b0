//! The search for deferred tools, in a catalogue of a thousand, and what a call through `tool_call`
//! stands for.

use mainspring_session::{
    AgentSpec, Answer, Event, FOUND_MAX, Phase, ToolCall, ToolIndex, ToolSpec, meant, stand_ins,
};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::fact;
use crate::support::{Session, agent, error_result, result};

const SERVICES: [(&str, &str); 40] = [
    ("github", "code hosting"),
    ("gitlab", "code hosting"),
    ("jira", "work tracking"),
    ("linear", "work tracking"),
    ("slack", "team chat"),
    ("teams", "team chat"),
    ("discord", "community chat"),
    ("gmail", "mail"),
    ("outlook", "mail"),
    ("calendly", "scheduling"),
    ("stripe", "payments"),
    ("paypal", "payments"),
    ("shopify", "online shop"),
    ("salesforce", "customer relations"),
    ("hubspot", "marketing"),
    ("zendesk", "customer support"),
    ("intercom", "customer support"),
    ("notion", "notes"),
    ("confluence", "team wiki"),
    ("dropbox", "file storage"),
    ("gdrive", "file storage"),
    ("s3", "object storage"),
    ("postgres", "relational database"),
    ("mongodb", "document database"),
    ("redis", "key value cache"),
    ("kafka", "event stream"),
    ("kubernetes", "container clusters"),
    ("docker", "containers"),
    ("terraform", "infrastructure"),
    ("cloudflare", "networking"),
    ("datadog", "monitoring"),
    ("sentry", "error tracking"),
    ("pagerduty", "alerting"),
    ("twilio", "phone"),
    ("zoom", "video calls"),
    ("spotify", "music"),
    ("airbnb", "travel"),
    ("uber", "rides"),
    ("weather", "weather"),
    ("maps", "places"),
];
const OBJECTS: [(&str, &str); 5] = [
    ("issue", "an issue with title and body"),
    ("file", "a file by its path"),
    ("message", "a message to a channel or a person"),
    ("payment", "a payment with amount and currency"),
    ("event", "an event with a start and an end"),
];
const VERBS: [(&str, &str); 5] = [
    ("create", "Creates"),
    ("delete", "Deletes"),
    ("update", "Changes"),
    ("list", "Lists"),
    ("get", "Reads"),
];

fn tool(name: &str, description: &str, field: &str) -> ToolSpec {
    let parameters = format!(
        "{{\"type\":\"object\",\"properties\":{{\"{field}_id\":{{\"type\":\"string\",\
         \"description\":\"which {field}\"}}}},\"required\":[\"{field}_id\"]}}"
    );
    let [search, _] = stand_ins();
    ToolSpec {
        name: name.to_owned(),
        description: description.to_owned(),
        parameters: RawValue::from_string(parameters).unwrap(),
        ..search
    }
}

/// A thousand tools: forty services, five kinds of things, five things to do with each.
fn catalogue() -> Vec<ToolSpec> {
    let mut tools = Vec::new();
    for (service, what) in SERVICES {
        for (object, described) in OBJECTS {
            for (verb, does) in VERBS {
                let name = format!("{service}_{verb}_{object}");
                let text = format!("{does} {described} in {service} ({what}).");
                tools.push(tool(&name, &text, object));
            }
        }
    }
    tools
}

const QUERIES: [(&str, &str); 20] = [
    ("create a github issue", "github_create_issue"),
    ("open a new ticket in jira", "jira_create_issue"),
    ("remove a file from dropbox", "dropbox_delete_file"),
    ("send a message to a slack channel", "slack_create_message"),
    ("post to discord", "discord_create_message"),
    ("show the stripe payments", "stripe_list_payment"),
    ("read a payment from paypal", "paypal_get_payment"),
    ("edit an event in outlook", "outlook_update_event"),
    ("schedule a meeting with calendly", "calendly_create_event"),
    ("which files are in s3", "s3_list_file"),
    ("fetch an object storage file", "s3_get_file"),
    ("delete a linear issue", "linear_delete_issue"),
    ("rename a gdrive document", "gdrive_update_file"),
    ("list errors: sentry issues", "sentry_list_issue"),
    ("make a zoom meeting", "zoom_create_event"),
    ("cancel: delete my airbnb event", "airbnb_delete_event"),
    ("look up a message in gmail", "gmail_get_message"),
    ("change a pagerduty event", "pagerduty_update_event"),
    ("githubCreateIssue", "github_create_issue"),
    ("notion files list", "notion_list_file"),
];

#[test]
fn sensible_words_find_the_right_one_of_a_thousand_tools_among_the_first_five() {
    let tools = catalogue();
    assert_eq!(tools.len(), 1_000);
    let index = ToolIndex::new(&tools);
    let (mut first, mut missed) = (0, Vec::new());
    for (query, wanted) in QUERIES {
        let found = index.search(query, 5);
        let names: Vec<_> = found.iter().map(|at| tools[*at].name.as_str()).collect();
        if !names.contains(&wanted) {
            missed.push(format!("{query:?} found {names:?}"));
        }
        first += usize::from(names[0] == wanted);
    }
    assert!(missed.is_empty(), "{missed:#?}");
    assert!(first >= 14, "{first} of {} stand first", QUERIES.len());
}

#[test]
fn a_search_is_the_same_each_time_and_knows_its_bounds() {
    let tools = catalogue();
    let (one, two) = (ToolIndex::new(&tools), ToolIndex::new(&tools));
    for (query, _) in QUERIES {
        assert_eq!(one.search(query, 20), two.search(query, 20));
    }
    assert_eq!(one.search("create", 1_000).len(), FOUND_MAX);
    assert!(one.search("", 5).is_empty());
    assert!(one.search("the of and", 5).is_empty());
    assert!(one.search("xyzzy", 5).is_empty());
    assert!(ToolIndex::new(&[]).search("create", 5).is_empty());
    let long = "ä".repeat(100_000) + " create";
    assert!(one.search(&long, 5).is_empty(), "only the first words of a long query count");
}

#[test]
fn the_answer_of_a_search_holds_the_tools_with_their_parameters() {
    let tools = catalogue();
    let index = ToolIndex::new(&tools);
    let arguments = r#"{"query":"create a github issue","limit":3}"#;
    let answer: Value = serde_json::from_str(&index.answer(&tools, arguments)).unwrap();
    let found = answer["tools"].as_array().unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[0]["name"], "github_create_issue");
    let field = &found[0]["parameters"]["properties"]["issue_id"];
    assert_eq!(field["description"], "which issue");
    let default: Value =
        serde_json::from_str(&index.answer(&tools, r#"{"query":"create an issue"}"#)).unwrap();
    assert_eq!(default["tools"].as_array().unwrap().len(), 5);
    assert!(index.answer(&tools, r#"{"query":"xyzzy"}"#).contains("other words"));
    assert!(index.answer(&tools, "[]").contains("query"));
}

fn call(name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: "c0".to_owned(), name: name.to_owned(), arguments: arguments.to_owned() }
}

#[test]
fn a_call_of_tool_call_means_the_tool_that_it_names() {
    let meaning = |arguments: &str| meant(&call("tool_call", arguments));
    let send = |arguments: &str| Some(call("send", arguments));
    assert_eq!(meaning(r#"{"name":"send","arguments":{"to":"me"}}"#), send(r#"{"to":"me"}"#));
    assert_eq!(meaning(r#"{"name":"send","arguments":"{\"to\":\"me\"}"}"#), send(r#"{"to":"me"}"#));
    assert_eq!(meaning(r#"{"name":"send"}"#), send("{}"));
    assert_eq!(meaning(r#"{"name":"send","arguments":null}"#), send("{}"));
    for other in ["{}", "[]", "", r#"{"name":7,"arguments":{}}"#] {
        assert_eq!(meaning(other), None, "{other}");
    }
    assert_eq!(meant(&call("send", r#"{"name":"look","arguments":{}}"#)), None);
}

/// `look` and the two tools that stand for the deferred ones are shown; `fetch`, `book` and `send`
/// are deferred.
fn deferring() -> AgentSpec {
    let mut spec = agent(&["small"]);
    spec.tools.splice(1..1, stand_ins());
    spec.deferred = 3;
    spec
}

fn through(name: &str) -> Answer {
    let arguments = format!("{{\"name\":\"{name}\",\"arguments\":{{}}}}");
    Answer { tool_calls: vec![call("tool_call", &arguments)], ..Answer::default() }
}

#[test]
fn a_deferred_tool_runs_as_itself_and_the_transcript_keeps_the_call_as_it_was_made() {
    let mut session = Session::asked(deferring());
    let events = session.tell(fact::answered(0, 1, through("send")));
    let Event::ToolCallStarted(started) = &events[1] else { panic!("{events:?}") };
    assert_eq!(started.name, "send");
    session.tell(fact::returned(0, 1, "sent"));
    assert_eq!(session.state.messages[2], result("c0", "send", "sent"));
    let mainspring_session::Message::Assistant { tool_calls, .. } = &session.state.messages[1]
    else {
        panic!("an answer");
    };
    assert_eq!(tool_calls[0].name, "tool_call");
}

#[test]
fn a_deferred_unsafe_tool_that_lost_its_process_is_not_run_again() {
    let session = Session::asked(deferring()).after(fact::answered(0, 1, through("send")));
    let (session, events) = session.reopened();
    assert_eq!(crate::support::kinds(&events), ["epoch_taken", "effect_unknown"]);
    assert!(matches!(session.state.phase, Phase::Acting(_)));
}

#[test]
fn without_deferred_tools_a_tool_of_that_name_is_one_like_any_other() {
    let mut spec = agent(&["small"]);
    spec.tools[0].name = "tool_call".to_owned();
    let mut session = Session::asked(spec);
    let events = session.tell(fact::answered(0, 1, through("send")));
    let Event::ToolCallStarted(started) = &events[1] else { panic!("{events:?}") };
    assert_eq!(started.name, "tool_call");
}

#[test]
fn a_call_of_a_tool_that_there_is_not_is_answered_with_its_problem() {
    let problem = fact::problem("tool_unknown", "there is no tool \"x\"; use tool_search", Some(0));
    let answered = fact::checked(0, 1, through("x"), vec![problem]);
    let session = Session::asked(deferring()).after(answered);
    let told = "there is no tool \"x\"; use tool_search";
    assert_eq!(session.last_messages(1), [error_result("c0", "x", told)]);
}
