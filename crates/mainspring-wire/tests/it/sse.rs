//! Server-sent events, however they are cut.

use mainspring_wire::{SseParser, SseTooLong};
use proptest::prelude::*;

/// The data of all events, with the bytes pushed in the given pieces.
fn events(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
    let mut parser = SseParser::new(1_000);
    let mut events = Vec::new();
    for piece in pieces {
        let pushed: Result<(), SseTooLong> = parser.push(piece, &mut |data| {
            events.push(data.to_vec());
            Ok(())
        });
        pushed.unwrap();
    }
    (events, parser.finish())
}

const STREAM: &str = "\u{feff}: comment\r\ndata: a\r\n\r\nevent: x\ndata:b\ndata:  c\nid: 1\n\n\
                      data\n\ndatax: no\n\n\n: ping\n\nretry: 5\rdata: Grüße 🎉\r\rdata: rest";

#[test]
fn lines_end_in_any_way_and_other_fields_are_read_over() {
    let (events, rest) = events(&[STREAM.as_bytes()]);
    let expected: Vec<&[u8]> = vec![b"a", b"b\n c", b"", "Grüße 🎉".as_bytes()];
    assert_eq!(events, expected);
    assert_eq!(rest, Some(b"rest".to_vec()));
}

#[test]
fn an_event_past_the_limit_is_refused_in_one_line_or_many() {
    for stream in [vec![b'x'; 2_000], b"data: 0123456789\n".repeat(200)] {
        let mut parser = SseParser::new(1_000);
        let pushed: Result<(), SseTooLong> = parser.push(&stream, &mut |_| Ok(()));
        assert_eq!(pushed, Err(SseTooLong { bytes_max: 1_000 }));
    }
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_events(cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&STREAM.as_bytes()[from..cut]);
            from = cut;
        }
        pieces.push(&STREAM.as_bytes()[from..]);
        prop_assert_eq!(events(&pieces), events(&[STREAM.as_bytes()]));
    }
}

#[test]
fn a_line_past_the_limit_is_refused_however_it_is_cut_and_whatever_it_says() {
    let line = format!(": {}\n\n", "x".repeat(20));
    for cut in 0..line.len() {
        let mut parser = SseParser::new(20);
        let (first, second) = line.as_bytes().split_at(cut);
        let mut push = |bytes| parser.push::<SseTooLong>(bytes, &mut |_| Ok(()));
        assert_eq!(push(first).and_then(|()| push(second)), Err(SseTooLong { bytes_max: 20 }));
    }
}
