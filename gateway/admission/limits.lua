-- Every limit of a request in one atomic step: all of them are taken, or none.
--
-- Time is the server's, in ms, so replicas need not agree on theirs. Numbers are whole. Lua's are doubles, exact to
-- 2^53, which a budget in pUSD exceeds at 9,007 USD: amounts stay decimal strings, are compared as strings and are
-- moved by HINCRBY, whose arithmetic is in 64-bit integers. Of what HINCRBY returns nothing is read.
--
-- Keys, in this order in every operation:
--   record   string: "done", or "tokens requests hold" then, for each budget, its generation and its key
--   leases   sorted set: request id -> when its lease ends
--   buckets  string "debt at": how far above empty, in units x window_ms, at which time; absent: nothing owed
--   slots    sorted set: request id -> when its lease ends
--   budgets  hash a: available, l: limit, g: generation, t: when it was loaded; absent: ask SQL
--
-- A bucket drains `limit` units per window_ms and refuses to rise above limit x window_ms. That is GCRA, written with
-- the level instead of the theoretical arrival time, because a level can be given back.

local op, id = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local buckets, slots, budgets = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local RECORD, LEASES = KEYS[1], KEYS[2]
local first_slot, first_budget = 2 + buckets, 2 + buckets + slots

local function whole(x)
  return string.format('%.0f', x)  -- tostring() writes 1e+15.
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

local function debt_of(key, limit)
  local debt, at = 0, now
  local stored = redis.call('GET', key)
  if stored then
    local d, t = string.match(stored, '^(%d+) (%d+)$')
    debt, at = tonumber(d), tonumber(t)
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
    redis.call('SET', key, whole(debt) .. ' ' .. whole(at), 'PX', whole(math.ceil(debt / limit) + 1000))
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

if op == 'reserve' then
  -- ARGV 6..9: lease_ms, record_ms, tokens, hold; then limit, window, cost of each bucket; limit of each slot; budget.
  local lease_end, record_ms, tokens, hold = now + tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9]
  local arg = 9
  if redis.call('EXISTS', RECORD) == 1 then return { 'known' } end

  local found = {}
  local budget_arg = arg + 3 * buckets + slots
  for i = 1, budgets do
    found[i] = redis.call('HMGET', KEYS[first_budget + i], 'a', 'l', 'g')
    if not found[i][1] then return { 'unknown', i } end
  end
  local poorest, least
  for i = 1, budgets do
    local available, limit = found[i][1], ARGV[budget_arg + i]
    if found[i][2] ~= limit then
      follow_limit(KEYS[first_budget + i], found[i][2], limit)
      available = redis.call('HGET', KEYS[first_budget + i], 'a')
    end
    if less(available, hold) and hold ~= '0' then
      if not least or string.sub(available, 1, 1) == '-' or less(available, least) then
        poorest, least = i, available
      end
    end
  end
  if poorest then return { 'money', poorest, least } end

  local debts, stamps, costs = {}, {}, {}
  local worst, wait = 0, -1
  for i = 1, buckets do
    local limit, window, cost = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3])
    arg = arg + 3
    debts[i], stamps[i] = debt_of(KEYS[2 + i], limit)
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
    local key = KEYS[first_slot + i]
    redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
    if redis.call('ZCARD', key) >= tonumber(ARGV[arg + i]) then return { 'parallel', i } end
  end

  -- From here on nothing refuses.
  local reply = { 'ok' }
  arg = 9
  for i = 1, buckets do
    local limit, window = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    arg = arg + 3
    local debt = debts[i] + costs[i] * window
    put_debt(KEYS[2 + i], limit, debt, stamps[i])
    reply[#reply + 1] = whole(math.floor((limit * window - debt) / window))
    reply[#reply + 1] = whole(limit > 0 and math.ceil(debt / limit) or 0)
  end
  for i = 1, slots do
    redis.call('ZADD', KEYS[first_slot + i], whole(lease_end), id)
    redis.call('PEXPIREAT', KEYS[first_slot + i], whole(lease_end + 60000))
  end
  local record = tokens .. ' 1 ' .. hold
  for i = 1, budgets do
    local key = KEYS[first_budget + i]
    if hold ~= '0' then redis.call('HINCRBY', key, 'a', negative(hold)) end
    record = record .. ' ' .. found[i][3] .. ' ' .. key
  end
  redis.call('SET', RECORD, record, 'PX', record_ms)
  redis.call('ZADD', LEASES, whole(lease_end), id)
  return reply
end

-- The generation under which each budget key was held for this request, or nil.
local function held_of(record)
  local tokens, requests, hold, rest = string.match(record, '^(%d+) (%d+) (%d+)(.*)$')
  local generation = {}
  for g, key in string.gmatch(rest, ' (%S+) (%S+)') do generation[key] = g end
  return tonumber(tokens), tonumber(requests), hold, generation
end

if op == 'settle' then
  -- ARGV 6..12: tokens, requests, charge, age_ms, lag_ms, done_ms, orphan; then limit, window, unit of each bucket.
  local tokens, requests, charge = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
  local settled_at, lag, done_ms, orphan = now - tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11], ARGV[12] == '1'
  local record = redis.call('GET', RECORD)
  if record == 'done' then return { 'done' } end
  if orphan and not record then return { 'done' } end
  local had_tokens, had_requests, hold, generation = 0, 0, '0', {}
  if record then had_tokens, had_requests, hold, generation = held_of(record) end

  local arg = 12
  for i = 1, buckets do
    local limit, window, unit = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]), ARGV[arg + 3]
    arg = arg + 3
    local more = unit == 't' and tokens - had_tokens or requests - had_requests
    if more ~= 0 then
      local debt, at = debt_of(KEYS[2 + i], limit)
      put_debt(KEYS[2 + i], limit, debt + more * window, at)
    end
  end
  for i = 1, slots do redis.call('ZREM', KEYS[first_slot + i], id) end
  for i = 1, budgets do
    local key = KEYS[first_budget + i]
    local counter = redis.call('HMGET', key, 'g', 't')
    if counter[1] and counter[1] == generation[key] then
      if hold ~= charge then
        redis.call('HINCRBY', key, 'a', hold)
        redis.call('HINCRBY', key, 'a', negative(charge))
      end
    elseif counter[1] and charge ~= '0' and tonumber(counter[2]) <= settled_at + lag then
      -- The counter was made anew from SQL while this request ran, so it knows nothing of its hold. Made later than
      -- settlement + lag, it has already read the charge from SQL.
      redis.call('HINCRBY', key, 'a', negative(charge))
    end
  end
  redis.call('ZREM', LEASES, id)
  -- Kept for a while: a settlement whose reply was lost is sent again.
  redis.call('SET', RECORD, 'done', 'PX', done_ms)
  return { record and 'ok' or 'lost' }
end

if op == 'renew' then
  -- ARGV 6..9: lease_ms, record_ms, tokens, hold.
  local lease_end, record_ms, tokens, hold = now + tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9]
  local record = redis.call('GET', RECORD)
  if record == 'done' then return { 'done' } end
  local generation = {}
  if record then
    local _
    _, _, _, generation = held_of(record)
  end
  for i = 1, budgets do
    if redis.call('EXISTS', KEYS[first_budget + i]) == 0 then return { 'unknown', i } end
  end
  local anew = not record
  for i = 1, budgets do
    -- Redis lost the hold, or the counter was made anew: take it again, unasked, for the request is already running.
    local key = KEYS[first_budget + i]
    local g = redis.call('HGET', key, 'g')
    if g ~= generation[key] then
      if hold ~= '0' then redis.call('HINCRBY', key, 'a', negative(hold)) end
      generation[key] = g
      anew = true
    end
  end
  if anew then
    record = tokens .. ' 1 ' .. hold
    for i = 1, budgets do
      local key = KEYS[first_budget + i]
      record = record .. ' ' .. generation[key] .. ' ' .. key
    end
  end
  redis.call('SET', RECORD, record, 'PX', record_ms)
  redis.call('ZADD', LEASES, whole(lease_end), id)
  for i = 1, slots do
    redis.call('ZADD', KEYS[first_slot + i], whole(lease_end), id)
    redis.call('PEXPIREAT', KEYS[first_slot + i], whole(lease_end + 60000))
  end
  return { 'ok' }
end

if op == 'load' then
  -- KEYS 3: the budget. ARGV 6..9: available, limit, generation, ttl_ms (0: for ever). The first loader wins.
  if redis.call('EXISTS', KEYS[3]) == 1 then return { 'known' } end
  redis.call('HSET', KEYS[3], 'a', ARGV[6], 'l', ARGV[7], 'g', ARGV[8], 't', whole(now))
  if ARGV[9] ~= '0' then redis.call('PEXPIRE', KEYS[3], ARGV[9]) end
  return { 'ok' }
end

return redis.error_reply('unknown operation ' .. op)
