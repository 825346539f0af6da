-- SPDX-License-Identifier: Apache-2.0
-- A bit of everything an interpreter does, round after round: every line must be the same.
local function round()
	local sum, words = 0, {}
	for i = 1, 3000 do
		words[i] = string.format("%05d:%s", (i * 7919) % 3001, ("x"):rep(i % 13))
	end
	table.sort(words)
	for i, word in ipairs(words) do
		sum = (sum * 31 + i * #word + word:byte(-1) + tonumber(word:sub(1, 5))) % 1000000007
	end
	local generate = coroutine.wrap(function()
		for i = 1, 300 do
			coroutine.yield(i * i)
		end
	end)
	for _ = 1, 300 do
		sum = (sum + generate()) % 1000000007
	end
	for i = 1, 200 do -- every error is a longjmp over C frames
		local ok, message = pcall(error, { code = i })
		sum = (sum + message.code * (ok and 2 or 1)) % 1000000007
	end
	local text = table.concat(words, " "):gsub("x+", function(run) return #run end)
	return sum + #text
end

io.stdout:setvbuf("line")
for _ = 1, tonumber(arg[1] or math.huge) do
	print(round())
end
os.exit(tonumber(arg[2] or 0))
