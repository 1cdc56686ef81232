-- Claims a free key, or says what it stands for. The claim, the month's compute units and the
-- content's mark are one step: a replay pays nothing, and what is refused holds nothing.
-- KEYS: the key, the month's quota, the content. ARGV: fingerprint, token, the claim's life in ms,
-- compute units, most of them in the month (negative: no bound), the quota's life in ms (0: none is
-- counted), whether content is unique, the generation of Redis.
local held = redis.call('HMGET', KEYS[1], 'hash', 'state', 'head', 'body')
if held[1] then
  if held[1] ~= ARGV[1] then return { 'mismatch' } end
  return { held[2] == 'claimed' and 'pending' or held[2], held[3] or '', held[4] or '' }
end
local units, most, counted = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] ~= '0'
local used, known = 0, 1
if counted then
  local quota = redis.call('HMGET', KEYS[2], 'used', 'known')
  used, known = tonumber(quota[1]) or 0, quota[2] == ARGV[8] and 1 or 0
  if most >= 0 and used + units > most then return { 'exhausted', used, known } end
end
if ARGV[7] == '1' then
  local first = redis.call('GET', KEYS[3])
  if first then return { 'duplicate', first } end
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
end
if counted then
  used = redis.call('HINCRBY', KEYS[2], 'used', units)
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'state', 'claimed', 'token', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return { 'claimed', used, known }
