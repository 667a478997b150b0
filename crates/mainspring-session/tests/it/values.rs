//! Small values: ids, hashes, prices, specs, failures.

use mainspring_session::{
    AgentSpec, ApprovalId, BlobHash, CallIndex, EffectId, Epoch, ErrorCode, Failure, Limits,
    Moment, Price, Seq, SessionId, Usage,
};

use crate::support::{agent, model};

#[test]
fn a_session_id_takes_only_its_characters_and_length() {
    let longest = "x".repeat(SessionId::LENGTH_MAX);
    for good in ["a", "A.b_c:d-9", "0", longest.as_str()] {
        assert_eq!(SessionId::new(good).unwrap().as_str(), good);
    }
    let too_long = "x".repeat(SessionId::LENGTH_MAX + 1);
    for bad in ["", "a b", "a/b", "ä", "a\n", "a\0", "..\\", "a%", too_long.as_str()] {
        let error = SessionId::new(bad).unwrap_err().to_string();
        let expected = format!(
            "session id {bad:?} is not valid\nhint: use 1 to 128 characters out of A-Z a-z 0-9 \
             . _ : -"
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn a_wrong_session_id_of_any_length_is_told_in_short() {
    let error = SessionId::new(&"ü".repeat(100_000)).unwrap_err();
    assert!(error.to_string().chars().count() < 300);
}

#[test]
fn a_session_id_is_checked_when_read() {
    let read = serde_json::from_str::<SessionId>;
    assert_eq!(read("\"a-1\"").unwrap(), SessionId::new("a-1").unwrap());
    assert!(read("\"a 1\"").is_err());
    assert_eq!(serde_json::to_string(&read("\"a-1\"").unwrap()).unwrap(), "\"a-1\"");
}

#[test]
fn an_effect_id_never_changes() {
    // SHA-256 of "mainspring.effect.v2" and of session, position (eight bytes, most significant
    // first), tool and arguments, each after its length in eight bytes; computed with Python's
    // hashlib. A tool's other side keeps these ids, so they hold for all versions.
    let id = |session, call, tool, arguments| {
        let session = SessionId::new(session).unwrap();
        EffectId::derive(&session, CallIndex(call), tool, arguments)
    };
    assert_eq!(id("s-1", 0, "pay", "{}").as_str(), "e39d77fa3ffc57b0de55203b9bb32325");
    let of_money = r#"{"amount":90}"#;
    assert_eq!(id("s-1", 258, "pay", of_money).as_str(), "4fcf0b830f3b7074bf7d16cd173b4700");
    let one = id("s-1", 1, "pay", "{}");
    for other in [
        id("s-11", 1, "pay", "{}"),
        id("s-1", 2, "pay", "{}"),
        id("s-1", 1, "pa", "y{}"),
        id("s-1", 1, "pay", "{ }"),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn an_approval_id_names_one_request() {
    // Computed as an effect id is, of session, epoch, store and position.
    let id = |session, epoch, store, call| {
        let session = SessionId::new(session).unwrap();
        ApprovalId::derive(&session, Epoch(epoch), store, CallIndex(call))
    };
    let one = id("s-1", 1, "store-1", 0);
    assert_eq!(one.as_str(), "b06a4e8870463738726228eab4eae441");
    assert_eq!(one, ApprovalId::named(one.as_str()));
    for other in [
        id("s-2", 1, "store-1", 0),
        id("s-1", 2, "store-1", 0),
        id("s-1", 1, "store-2", 0),
        id("s-1", 1, "store-1", 1),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn a_seed_is_the_same_for_ever_and_spread_over_positions() {
    // FNV-1a and the first half of MurmurHash3's finaliser, computed with Python. A replay derives
    // the seeds of old logs again.
    let session = SessionId::new("s-1").unwrap();
    let seed = |at| Moment::seed_of(&session, Seq(at));
    assert_eq!(seed(0), 1545791634414460);
    assert_eq!(seed(1), 600479318727042);
    let parts: std::collections::BTreeSet<_> = (0..1024).map(|at| seed(at) % 1024 / 64).collect();
    assert_eq!(parts.len(), 16, "the seeds of a session fall into every part of the range");
}

#[test]
fn a_blob_hash_is_sha256() {
    // FIPS 180-2, appendix B.1.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(BlobHash::of(b"abc").as_str(), expected);
}

#[test]
fn a_price_counts_fresh_cached_and_written_tokens() {
    let usage = Usage {
        input_tokens: 3_000_000,
        output_tokens: 500_000,
        cached_tokens: 1_000_000,
        cache_write_tokens: 0,
        reasoning_tokens: 400_000,
    };
    let price = |cached_usd| Price {
        input_usd: 2.0,
        output_usd: 8.0,
        cached_usd,
        cache_write_usd: None,
        long: None,
    };
    assert_eq!(price(Some(0.5)).of(usage), 4.0 + 0.5 + 4.0);
    assert_eq!(price(None).of(usage), 6.0 + 4.0, "no price for cached: that of reading");
    let odd = Usage { cached_tokens: 9_000_000, ..usage };
    assert_eq!(price(Some(0.0)).of(odd), 4.0, "no more is cached than was read");
    assert_eq!(Price::default().of(usage), 0.0);
}

#[test]
fn equal_agents_have_equal_fingerprints_and_read_back_the_same() {
    let spec = agent(&["small", "large"]);
    assert_eq!(spec.fingerprint(), agent(&["small", "large"]).fingerprint());
    assert_ne!(spec.fingerprint(), agent(&["large", "small"]).fingerprint());
    let read: AgentSpec = serde_json::from_slice(&spec.to_json()).unwrap();
    assert_eq!(read.to_json(), spec.to_json());
    assert_eq!(read.fingerprint(), BlobHash::of(&spec.to_json()));
}

#[test]
fn a_spec_fills_in_its_defaults_and_refuses_what_it_does_not_know() {
    let text = r#"{"name":"a","models":[{"name":"m","base_url":"http://h/v1",
        "tool_mode":"json_schema","output_mode":"prompt"}]}"#;
    let spec: AgentSpec = serde_json::from_str(text).unwrap();
    assert_eq!(spec.limits, Limits::default());
    assert_eq!(spec.models[0].connect_ms_max, 10_000);
    assert_eq!(spec.models[0].first_token_ms_max, 120_000);
    assert_eq!(spec.models[0].total_ms_max, 600_000);
    assert!(!spec.verify && spec.tools.is_empty() && spec.instructions.is_empty());
    for wrong in [
        text.replace("\"name\":\"a\"", "\"name\":\"a\",\"nam\":1"),
        text.replace("\"name\":\"m\"", "\"name\":\"m\",\"key\":\"secret\""),
        r#"{"name":"a","models":[],"limits":{"steps":3}}"#.to_owned(),
    ] {
        let error = serde_json::from_str::<AgentSpec>(&wrong).unwrap_err().to_string();
        assert!(error.starts_with("unknown field"), "{error}");
    }
}

#[test]
fn a_tool_is_found_by_its_whole_name() {
    let spec = agent(&["small"]);
    assert_eq!(spec.tool("book").map(|tool| tool.name.as_str()), Some("book"));
    assert!(spec.tool("boo").is_none() && spec.tool("Book").is_none());
}

#[test]
fn the_cost_of_a_session_adds_up_over_models_of_known_price() {
    let mut spec = agent(&["small", "large"]);
    spec.models[1] = mainspring_session::ModelSpec {
        price: Some(Price {
            input_usd: 1_000_000.0,
            output_usd: 0.0,
            cached_usd: None,
            cache_write_usd: None,
            long: None,
        }),
        ..model("large")
    };
    let mut session = crate::support::Session::asked(spec);
    let wrong = vec![crate::fact::problem("parse", "not JSON", None)];
    session.tell(crate::fact::checked(0, 1, crate::fact::text("{"), wrong));
    assert_eq!(session.state.cost_usd, 0.0);
    let cut_off = vec![crate::fact::problem("finish_reason", "cut off", None)];
    session.tell(crate::fact::checked(1, 1, crate::fact::text("{"), cut_off));
    session.tell(crate::fact::answered(2, 1, crate::fact::text("{}")));
    assert_eq!(session.state.cost_usd, 10.0);
}

#[test]
fn a_failure_takes_its_retryability_from_the_catalogue_and_reads_with_its_hint() {
    let error = Failure::new(ErrorCode::MODEL_TIMEOUT, "no answer in 30 s");
    assert!(error.retryable);
    assert_eq!(error.to_text(), "no answer in 30 s");
    let error = error.with_hint("raise ModelSpec.total_s_max");
    assert_eq!(error.to_text(), "no answer in 30 s\nhint: raise ModelSpec.total_s_max");
    assert_eq!(error.to_string(), "no answer in 30 s");
    let unlisted = Failure::new(ErrorCode::named("from_the_future"), "hm");
    assert!(!unlisted.retryable);
    assert_eq!(unlisted.code.to_string(), "from_the_future");
}
