-- Every limit of a request in one atomic step: all of them are taken, or none.
--
-- Time is the server's, in ms, so replicas need not agree on theirs. Numbers are whole. Lua's are doubles, exact to
-- 2^53, which a budget in pUSD exceeds at 9,007 USD: amounts stay decimal strings, are compared as strings and are
-- moved by HINCRBY, whose arithmetic is in 64-bit integers. Of what HINCRBY returns nothing is read.
--
-- Keys, in this order in every operation:
--   record   string: "done", or "tokens requests hold owner" then, for each budget, its generation and its key
--   leases   sorted set: request id -> when its lease ends
--   muster   hash of gateways that have announced what they hold: boot -> token, boot:owner -> 1
--   buckets  string "debt at": how far above empty, in units x window_ms, at which time; absent: nothing owed
--   slots    sorted set: request id -> when its lease ends
--   budgets  hash a: available, g: generation, l: limit, s: debt of a throttle, as in a bucket; absent: ask SQL
--
-- A bucket drains `limit` units per window_ms and refuses to rise above limit x window_ms. That is GCRA, written with
-- the level instead of the theoretical arrival time, because a level can be given back.
--
-- A generation begins with the boot: eight characters that name this life of the server. A counter of an earlier one
-- may lack its last second, so it counts for nothing and is made anew. While it is (no `l` yet), the hash also lists
-- whose holds are in `a` (o:<id> -> hold) and whose charges (c:<id> -> charge), since the sum that SQL will say may
-- have some of them as well. What SQL had charged before its hold was given back stays listed: k:<id>, and `k`.

local op, id = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local buckets, slots, budgets = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local BOOT, OWNER = ARGV[6], ARGV[7]
local RECORD, LEASES, MUSTER = KEYS[1], KEYS[2], KEYS[3]
local first_slot, first_budget = 3 + buckets, 3 + buckets + slots

local function whole(x)
  return string.format('%.0f', x)  -- tostring() writes 1e+15; '%d' is 32 bits wide on some builds.
end

local function negative(amount)
  if string.sub(amount, 1, 1) == '-' then return string.sub(amount, 2) end
  return amount == '0' and '0' or '-' .. amount
end

-- Is a < b? Both canonical decimals, b not negative.
local function less(a, b)
  if string.sub(a, 1, 1) == '-' then return true end
  if #a ~= #b then return #a < #b end
  return a < b
end

local function drained(stored, limit)
  local debt, at = 0, now
  if stored then
    local gap = string.find(stored, ' ', 1, true)
    debt, at = tonumber(string.sub(stored, 1, gap - 1)), tonumber(string.sub(stored, gap + 1))
    if now > at then  -- Else the server's clock went back: nothing drains until it has caught up.
      debt = math.max(0, debt - (now - at) * limit)
      at = now
    end
  end
  return debt, at
end

local function put_debt(key, limit, debt, at)
  if debt <= 0 or limit <= 0 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, string.format('%.0f %.0f', debt, at), 'PX', whole(math.ceil(debt / limit) + 1000))
  end
end

-- A changed limit is felt by the counter, which keeps what was spent and held.
local function follow_limit(key, stored, limit)
  if stored ~= limit then
    redis.call('HINCRBY', key, 'a', negative(stored))
    redis.call('HINCRBY', key, 'a', limit)
    redis.call('HSET', key, 'l', limit)
  end
end

local function of_this_boot(generation)
  return generation and string.sub(generation, 1, 8) == BOOT
end

local function written(tokens, requests, hold, generation)
  local record = tokens .. ' ' .. requests .. ' ' .. hold .. ' ' .. OWNER
  for i = 1, budgets do
    local key = KEYS[first_budget + i]
    record = record .. ' ' .. generation[key] .. ' ' .. key
  end
  return record
end

if op == 'reserve' then
  -- ARGV 8..11: lease_ms, record_ms, tokens, hold; then limit, window, cost of each bucket; limit of each slot; limit,
  -- need, pace of each budget. need: what has to be available. pace: where it is not, 0 refuses, -1 only tells, above
  -- that so many requests a minute pass.
  local lease_end, record_ms, tokens, hold = now + tonumber(ARGV[8]), ARGV[9], ARGV[10], ARGV[11]
  local arg = 11
  if redis.call('EXISTS', RECORD) == 1 then return { 'known' } end

  local found = {}
  local budget_arg = arg + 3 * buckets + slots
  for i = 1, budgets do
    found[i] = redis.call('HMGET', KEYS[first_budget + i], 'a', 'l', 'g')
    if not found[i][2] or not of_this_boot(found[i][3]) then return { 'unknown', i } end
  end
  local poorest, least, slowest
  local past, slow, slow_ms = {}, {}, -1
  for i = 1, budgets do
    local key, available, limit = KEYS[first_budget + i], found[i][1], ARGV[budget_arg + 3 * i - 2]
    if found[i][2] ~= limit then
      follow_limit(key, found[i][2], limit)
      available = redis.call('HGET', key, 'a')
    end
    if less(available, ARGV[budget_arg + 3 * i - 1]) and hold ~= '0' then
      local pace = tonumber(ARGV[budget_arg + 3 * i])
      if pace == 0 then
        if not least or string.sub(available, 1, 1) == '-' or less(available, least) then
          poorest, least = i, available
        end
      else
        past[#past + 1] = i
        if pace > 0 then
          -- One request, then the next after its share of a minute: what is past its budget has no burst.
          local debt, at = drained(redis.call('HGET', key, 's'), pace)
          if debt > 0 and math.ceil(debt / pace) > slow_ms then
            slowest, slow_ms = i, math.ceil(debt / pace)
          end
          slow[i] = whole(debt + 60000) .. ' ' .. whole(at)
        end
      end
    end
  end
  if poorest then return { 'money', poorest, least } end
  if slowest then return { 'slow', slowest, whole(slow_ms) } end

  local debts, stamps, costs = {}, {}, {}
  local worst, wait = 0, -1
  local stored = buckets > 0 and redis.call('MGET', unpack(KEYS, 4, first_slot))
  for i = 1, buckets do
    local limit, window, cost = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3])
    arg = arg + 3
    debts[i], stamps[i] = drained(stored[i], limit)
    costs[i] = cost
    local after, top = debts[i] + cost * window, limit * window
    if after > top and cost > 0 then
      if cost > limit then return { 'never', i } end
      local ms = math.ceil((after - top) / limit)
      if ms > wait then worst, wait = i, ms end
    end
  end
  if worst > 0 then return { 'rate', worst, whole(wait) } end

  for i = 1, slots do
    local key, limit = KEYS[first_slot + i], tonumber(ARGV[arg + i])
    if redis.call('ZCARD', key) >= limit then  -- Only then does it matter who has let a lease run out.
      redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
      if redis.call('ZCARD', key) >= limit then return { 'parallel', i } end
    end
  end

  -- From here on nothing refuses.
  local reply = { 'ok' }
  arg = 11
  for i = 1, buckets do
    local limit, window = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    arg = arg + 3
    local debt = debts[i] + costs[i] * window
    put_debt(KEYS[3 + i], limit, debt, stamps[i])
    reply[2 * i] = math.floor((limit * window - debt) / window)
    reply[2 * i + 1] = limit > 0 and math.ceil(debt / limit) or 0
  end
  local ends = whole(lease_end)
  for i = 1, slots do
    redis.call('ZADD', KEYS[first_slot + i], ends, id)
    redis.call('PEXPIREAT', KEYS[first_slot + i], whole(lease_end + 60000))
  end
  local generation = {}
  for i = 1, budgets do
    local key = KEYS[first_budget + i]
    if hold ~= '0' then redis.call('HINCRBY', key, 'a', negative(hold)) end
    if slow[i] then redis.call('HSET', key, 's', slow[i]) end
    generation[key] = found[i][3]
  end
  redis.call('SET', RECORD, written(tokens, 1, hold, generation), 'PX', record_ms)
  redis.call('ZADD', LEASES, ends, id)
  for i = 1, #past do reply[#reply + 1] = past[i] end
  return reply
end

-- The generation under which each budget key was held for this request, or nil.
local function held_of(record)
  local tokens, requests, hold, rest = string.match(record, '^(%d+) (%d+) (%d+) %S+(.*)$')
  local generation = {}
  for g, key in string.gmatch(rest, ' (%S+) (%S+)') do generation[key] = g end
  return tonumber(tokens), tonumber(requests), hold, generation
end

if op == 'settle' then
  -- ARGV 8..12: tokens, requests, charge, done_ms, orphan; then limit, window, unit of each bucket; of each
  -- budget whether it is charged.
  local tokens, requests, charge = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
  local done_ms, orphan = ARGV[11], ARGV[12] == '1'
  local record = redis.call('GET', RECORD)
  if record == 'done' then return { 'done' } end
  if orphan and not record then return { 'done' } end
  local had_tokens, had_requests, hold, generation = 0, 0, '0', {}
  if record then had_tokens, had_requests, hold, generation = held_of(record) end

  local arg = 12
  for i = 1, buckets do
    local limit, window, unit = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]), ARGV[arg + 3]
    arg = arg + 3
    local more = string.sub(unit, 1, 1) == 't' and tokens - had_tokens or requests - had_requests
    if #unit > 1 then more = unit == 't0' and -had_tokens or -had_requests end  -- Of a provider that did not answer.
    if more ~= 0 then
      local debt, at = drained(redis.call('GET', KEYS[3 + i]), limit)
      put_debt(KEYS[3 + i], limit, debt + more * window, at)
    end
  end
  for i = 1, slots do redis.call('ZREM', KEYS[first_slot + i], id) end
  for i = 1, budgets do
    local key = KEYS[first_budget + i]
    local counter = redis.call('HMGET', key, 'g', 'l', 'k')
    if counter[1] and counter[1] == generation[key] then
      local owed = ARGV[arg + i] == '0' and '0' or charge
      if not counter[2] then
        redis.call('HDEL', key, 'o:' .. id)
        redis.call('HSET', key, 'c:' .. id, owed)
      elseif counter[3] and redis.call('HDEL', key, 'k:' .. id) == 1 then
        owed = '0'  -- SQL had the charge when this counter was made from it.
        if redis.call('HINCRBY', key, 'k', -1) == 0 then redis.call('HDEL', key, 'k') end
      end
      if hold ~= owed then
        redis.call('HINCRBY', key, 'a', hold)
        redis.call('HINCRBY', key, 'a', negative(owed))
      end
    elseif counter[2] and of_this_boot(counter[1]) and charge ~= '0' and ARGV[arg + i] ~= '0' and not orphan
        and redis.call('HEXISTS', MUSTER, BOOT .. ':' .. OWNER) == 0 then
      -- The counter was made without waiting for this gateway, which could not be reached. (One that has announced
      -- itself had written to SQL by then what it had settled, and has listed the rest.)
      redis.call('HINCRBY', key, 'a', negative(charge))
    end
  end
  redis.call('ZREM', LEASES, id)
  -- Kept for a while: a settlement whose reply was lost is sent again.
  redis.call('SET', RECORD, 'done', 'PX', done_ms)
  return { record and 'ok' or 'lost' }
end

if op == 'renew' then
  -- ARGV 8..12: lease_ms, record_ms, tokens, hold, generation of counters that have to be begun.
  local lease_end, record_ms, tokens, hold = now + tonumber(ARGV[8]), ARGV[9], ARGV[10], ARGV[11]
  local record = redis.call('GET', RECORD)
  if record == 'done' then return { 'done' } end
  local generation = {}
  if record then
    local _
    _, _, _, generation = held_of(record)
  end
  local anew = not record
  for i = 1, budgets do
    local key = KEYS[first_budget + i]
    local counter = redis.call('HMGET', key, 'g', 'l')
    local g, known = counter[1], counter[2]
    if not of_this_boot(g) then
      g, known = BOOT .. ARGV[12], false
      redis.call('DEL', key)
      redis.call('HSET', key, 'a', '0', 'g', g)
      redis.call('PEXPIRE', key, record_ms)
    end
    if g ~= generation[key] then
      -- Redis lost the hold, or the counter is being made: take it again, unasked, for the request already runs.
      if hold ~= '0' then redis.call('HINCRBY', key, 'a', negative(hold)) end
      if not known then redis.call('HSET', key, 'o:' .. id, hold) end
      generation[key] = g
      anew = true
    end
  end
  if anew then record = written(tokens, 1, hold, generation) end
  redis.call('SET', RECORD, record, 'PX', record_ms)
  redis.call('ZADD', LEASES, whole(lease_end), id)
  for i = 1, slots do
    redis.call('ZADD', KEYS[first_slot + i], whole(lease_end), id)
    redis.call('PEXPIREAT', KEYS[first_slot + i], whole(lease_end + 60000))
  end
  return { 'ok' }
end

if op == 'call' then
  -- ARGV 8: a token, should nobody have called yet. Returns: the token in force, whether OWNER is there already.
  local token = redis.call('HGET', MUSTER, BOOT)
  if not token then
    token = ARGV[8]
    redis.call('DEL', MUSTER)
    redis.call('HSET', MUSTER, BOOT, token)
  end
  return { token, redis.call('HEXISTS', MUSTER, BOOT .. ':' .. OWNER) }
end

if op == 'present' then
  -- ARGV 8: the token under which OWNER began to announce. Another one: what it announced is lost.
  if redis.call('HGET', MUSTER, BOOT) ~= ARGV[8] then return { 'again' } end
  redis.call('HSET', MUSTER, BOOT .. ':' .. OWNER, '1')
  return { 'ok' }
end

if op == 'load' then
  -- KEYS 4: the budget. ARGV 8..11: limit less what SQL says was spent, limit, generation, ttl_ms (0: for ever); then
  -- how many gateways have to be there, and which; then request ids, each with "1" if that sum has its charge.
  -- The first loader wins.
  local key = KEYS[4]
  local counter = redis.call('HMGET', key, 'g', 'l')
  local begun = of_this_boot(counter[1])
  if begun and counter[2] then return { 'known' } end
  local arg = 12 + tonumber(ARGV[12])
  for i = 13, arg do
    if redis.call('HEXISTS', MUSTER, BOOT .. ':' .. ARGV[i]) == 0 then return { 'absent', ARGV[i] } end
  end
  local counted = {}
  for i = arg + 1, #ARGV, 2 do counted[ARGV[i]] = ARGV[i + 1] == '1' end
  if not begun then
    redis.call('DEL', key)
    redis.call('HSET', key, 'a', '0', 'g', ARGV[10])
  end
  local listed = redis.call('HGETALL', key)
  for i = 1, #listed, 2 do
    local kind, request = string.match(listed[i], '^([oc]):(.*)$')
    if kind and counted[request] == nil then return { 'again' } end
  end
  local already = 0
  for i = 1, #listed, 2 do
    local kind, request = string.match(listed[i], '^([oc]):(.*)$')
    if kind then
      redis.call('HDEL', key, listed[i])
      if counted[request] and kind == 'c' then
        redis.call('HINCRBY', key, 'a', listed[i + 1])
      elseif counted[request] then
        redis.call('HSET', key, 'k:' .. request, '1')
        already = already + 1
      end
    end
  end
  if already > 0 then redis.call('HSET', key, 'k', whole(already)) end
  redis.call('HINCRBY', key, 'a', ARGV[8])
  redis.call('HSET', key, 'l', ARGV[9])
  if ARGV[11] == '0' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, ARGV[11]) end
  return { 'ok' }
end

return redis.error_reply('unknown operation ' .. op)
