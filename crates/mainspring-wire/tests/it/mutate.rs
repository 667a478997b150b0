//! Bytes that are almost those of a server, from a seed: for the fuzz test, and for `make fuzz`.

/// A small generator of numbers (splitmix64); the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }
}

/// Pieces that the formats give a meaning to, and that are wrong almost everywhere.
const PIECES: [&[u8]; 28] = [
    b"\n\n",
    b"\r",
    b"data: ",
    b"event: error\n",
    b"data: [DONE]\n\n",
    b"null",
    b"{}",
    b"[]",
    b"[[[[[[[[[[[[[[[[",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\"\\ud800\"",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\\u0000",
    b"\"error\":{\"type\":\"overloaded_error\"},",
    b"\"index\":4000000000,",
    b"\"output_index\":7,",
    b"\"type\":\"tool_use\",",
    b"\"type\":\"function_call\",",
    b"\"type\":\"reasoning\",",
    b"\"type\":\"thinking\",",
    b"\"delta\":{\"text\":\"x\"},",
    b"\"tool_calls\":[{\"id\":\"call_0\"}],",
    b"\"logprobs\":{\"content\":[{\"token\":\"x\",\"logprob\":-1}]},",
    b"\"usage\":{\"input_tokens\":-5},",
    b"}",
];

/// Changes `bytes` in a few places; `other` lends pieces.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=rng.below(6) {
        let at = rng.below(bytes.len() + 1);
        let end = (at + 1 + rng.below(64)).min(bytes.len());
        match rng.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 => drop(bytes.drain(at..end.max(at))),
            2 => {
                let copy = bytes[at..end.max(at)].to_vec();
                bytes.splice(at..at, copy);
            }
            3 => bytes.truncate(at),
            4 if !other.is_empty() => {
                let from = rng.below(other.len());
                let to = (from + 1 + rng.below(200)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            5 => {
                // One whole event more, where there are events.
                let event =
                    bytes.split(|byte| *byte == b'\n').nth(rng.below(20)).map(<[u8]>::to_vec);
                bytes.splice(at..at, event.into_iter().flatten().chain(*b"\n\n"));
            }
            _ => {
                let piece = PIECES[rng.below(PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
}

/// `bytes` in up to eight pieces.
pub fn cut<'a>(rng: &mut Rng, bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = (0..rng.below(8)).map(|_| rng.below(bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut from = 0;
    let mut pieces = Vec::with_capacity(cuts.len());
    for cut in cuts {
        pieces.push(&bytes[from..cut]);
        from = cut;
    }
    pieces
}
