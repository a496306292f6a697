//! The stack machine that executes pickles.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use super::input::Input;
use super::{Pickle, PickleError, Unread, VALUES_MAX, Value, ValueId};
use crate::weights::storage::Storage;

const PROTOCOL_MAX: u8 = 5;

pub(super) struct Machine<'a, R> {
    pub(super) input: Input<'a, R>,
    pub(super) values: Vec<Value>,
    pub(super) storages: BTreeMap<String, Storage>,
    /// Pairs from which dictionaries were created, in addition to those that were set.
    pub(super) copied: usize,
    stack: Vec<ValueId>,
    /// Heights of the stack, the innermost last.
    marks: Vec<usize>,
    memo: HashMap<u32, ValueId>,
}

impl<'a, R: Read> Machine<'a, R> {
    pub(super) fn new(reader: &'a mut R) -> Self {
        Self {
            input: Input::new(reader),
            values: Vec::new(),
            storages: BTreeMap::new(),
            copied: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Pickle, PickleError> {
        loop {
            let opcode = self.input.byte()?;
            if opcode == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { values: self.values, storages: self.storages, root });
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            0x80 => self.protocol(),
            // A frame only announces the number of bytes that follow.
            0x95 => self.input.array::<8>().map(drop),
            b'(' => self.mark(),
            b'0' => self.pop().map(drop),
            b'1' => self.pop_to_mark().map(drop),
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))
            }
            0x85..=0x87 => self.short_tuple(usize::from(opcode - 0x84)),
            b'a' | b'e' => self.append(opcode == b'e'),
            b's' | b'u' => self.set_items(opcode == b'u'),
            b'q' | b'r' | 0x94 => self.memoize(opcode),
            b'h' | b'j' => self.recall(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'Q' => self.storage(),
            b'R' => self.reduce(),
            0x81 => self.new_object(),
            // Only the existence of a set is recorded.
            0x90 => self.pop_to_mark().map(drop),
            0x91 => {
                self.pop_to_mark()?;
                self.push(Value::Unread(Unread::Set))
            }
            b'b' => self.build(),
            _ => {
                let value = self.scalar(opcode)?;
                self.push(value)
            }
        }
    }

    fn scalar(&mut self, opcode: u8) -> Result<Value, PickleError> {
        Ok(match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(self.input.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.input.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.input.array()?).into()),
            0x8A => {
                let length = self.input.byte()?;
                self.long(length.into())?
            }
            0x8B => {
                let length = self.input.u32()?;
                self.long(length.into())?
            }
            b'G' => Value::Float(f64::from_be_bytes(self.input.array()?)),
            // Byte strings of Python 2 are text in every checkpoint that has them.
            b'X' | b'T' => {
                let length = self.input.u32()?;
                Value::Text(self.input.text(length.into())?)
            }
            0x8C | b'U' => {
                let length = self.input.byte()?;
                Value::Text(self.input.text(length.into())?)
            }
            0x8D => {
                let length = self.input.u64()?;
                Value::Text(self.input.text(length)?)
            }
            b'B' | b'C' | 0x8E | 0x96 => {
                let length = match opcode {
                    b'B' => self.input.u32()?.into(),
                    b'C' => self.input.byte()?.into(),
                    _ => self.input.u64()?,
                };
                self.input.skip(length)?;
                Value::Unread(Unread::Bytes)
            }
            0x8F => Value::Unread(Unread::Set),
            _ => return Err(PickleError::ForbiddenOpcode { opcode, at: self.input.at() - 1 }),
        })
    }

    fn long(&mut self, length: u64) -> Result<Value, PickleError> {
        Ok(self.input.long(length)?.map_or(Value::Unread(Unread::Number), Value::Int))
    }

    fn protocol(&mut self) -> Result<(), PickleError> {
        if self.input.byte()? > PROTOCOL_MAX {
            return Err(self.malformed("the protocol is unknown"));
        }
        Ok(())
    }

    pub(super) fn push(&mut self, value: Value) -> Result<(), PickleError> {
        let id = u32::try_from(self.values.len()).ok().filter(|_| self.values.len() < VALUES_MAX);
        let id = id.ok_or(PickleError::TooLarge { what: "values", max: VALUES_MAX as u64 })?;
        self.values.push(value);
        self.push_id(ValueId(id))
    }

    pub(super) fn push_id(&mut self, id: ValueId) -> Result<(), PickleError> {
        if self.stack.len() >= VALUES_MAX {
            return Err(PickleError::TooLarge { what: "stack slots", max: VALUES_MAX as u64 });
        }
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> Result<(), PickleError> {
        if self.marks.len() >= VALUES_MAX {
            return Err(PickleError::TooLarge { what: "marks", max: VALUES_MAX as u64 });
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The top of the stack, but never below the innermost mark.
    pub(super) fn pop(&mut self) -> Result<ValueId, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => Err(self.malformed("the stack is empty")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<ValueId>, PickleError> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        let mark = mark.ok_or_else(|| self.malformed("there is no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn top(&mut self) -> Result<ValueId, PickleError> {
        let id = self.pop()?;
        self.stack.push(id);
        Ok(id)
    }

    fn short_tuple(&mut self, length: usize) -> Result<(), PickleError> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, many: bool) -> Result<(), PickleError> {
        let added = if many { self.pop_to_mark()? } else { vec![self.pop()?] };
        let target = self.top()?;
        let Value::List(items) = &mut self.values[target.0 as usize] else {
            return Err(self.malformed("items are appended to something that is no list"));
        };
        items.extend(added);
        Ok(())
    }

    fn set_items(&mut self, many: bool) -> Result<(), PickleError> {
        let added = if many {
            self.pop_to_mark()?
        } else {
            let value = self.pop()?;
            vec![self.pop()?, value]
        };
        let (pairs, []) = added.as_chunks::<2>() else {
            return Err(self.malformed("a key has no value"));
        };
        let target = self.top()?;
        let Value::Dict(items) = &mut self.values[target.0 as usize] else {
            return Err(self.malformed("items are set in something that is no dictionary"));
        };
        items.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn memoize(&mut self, opcode: u8) -> Result<(), PickleError> {
        let slot = match opcode {
            b'q' => self.input.byte()?.into(),
            b'r' => self.input.u32()?,
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        if self.memo.len() >= VALUES_MAX {
            return Err(PickleError::TooLarge { what: "memo slots", max: VALUES_MAX as u64 });
        }
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), PickleError> {
        let slot = if opcode == b'h' { self.input.byte()?.into() } else { self.input.u32()? };
        let id = self.memo.get(&slot).copied();
        let id = id.ok_or_else(|| self.malformed("an empty memo slot is recalled"))?;
        self.push_id(id)
    }

    pub(super) fn get(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub(super) fn text(&self, id: ValueId) -> Result<&str, PickleError> {
        match self.get(id) {
            Value::Text(text) => Ok(text),
            _ => Err(self.malformed("a text is expected")),
        }
    }

    pub(super) fn natural(&self, id: ValueId) -> Result<usize, PickleError> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
        .ok_or_else(|| self.malformed("a length is expected"))
    }

    pub(super) fn tuple(&self, id: ValueId) -> Result<&[ValueId], PickleError> {
        match self.get(id) {
            Value::Tuple(items) => Ok(items),
            _ => Err(self.malformed("a tuple is expected")),
        }
    }

    pub(super) fn malformed(&self, what: &'static str) -> PickleError {
        self.input.malformed(what)
    }
}
